// OCR-D's workflow scripts: one Processor run a line, `NAME -I GRPS -O GRPS -p JSON_OR_FILE -P KEY VALUE`, and what
// depends on what. Pure but for the files that -p names.
#pragma once

#include "lib/model/json.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::server {

struct WorkflowTask {
    std::string processor; // with the "ocrd-" that the script leaves out
    std::vector<std::string> input_groups, output_groups;
    Json parameters = Json::object(); // as written: defaults are not filled in
    int line = 0;                     // of the script, from 1
};

/// The tasks of a script, at least one, each with input and output groups. There are no comments, no continuations and
/// no other options. `-p` takes a readable file of that name on this machine, else the text as JSON.
/// Errors: Invalid, naming the line; nothing of a bad script is used.
Result<std::vector<WorkflowTask>> parse_workflow(std::string_view script);

/// For each task the earlier tasks it waits for, by index: of each of its input groups the latest task before it that
/// writes the group. Groups that no earlier task writes are expected in the METS.
std::vector<std::vector<std::size_t>> dependencies(std::vector<WorkflowTask> const& tasks);

/// The words of a line as a POSIX shell splits them (quotes, backslashes, no comments): Invalid if a quote is open.
Result<std::vector<std::string>> split_shell_words(std::string_view line);

} // namespace ocrctl::server
