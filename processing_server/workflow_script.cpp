#include "processing_server/workflow_script.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <filesystem>
#include <map>

namespace ocrctl::server {

namespace {

constexpr std::uintmax_t kLargestParameterFile = 4 * 1024 * 1024;

/// The length of the line boundary at the start of the text, 0 if there is none: those of Python's splitlines, since
/// OCR-D cuts scripts by them.
std::size_t boundary(std::string_view text) {
    switch (text.front()) {
    case '\r': return text.starts_with("\r\n") ? 2 : 1;
    case '\n':
    case '\v':
    case '\f':
    case '\x1c':
    case '\x1d':
    case '\x1e': return 1;
    default: break;
    }
    if (text.starts_with("\xC2\x85")) return 2;                                        // next line
    if (text.starts_with("\xE2\x80\xA8") || text.starts_with("\xE2\x80\xA9")) return 3; // line, paragraph separator
    return 0;
}

std::vector<std::string_view> lines_of(std::string_view text) {
    std::vector<std::string_view> lines;
    std::size_t begin = 0, at = 0;
    while (at < text.size()) {
        auto length = boundary(text.substr(at));
        if (length == 0) {
            ++at;
            continue;
        }
        lines.push_back(text.substr(begin, at - begin));
        at += length;
        begin = at;
    }
    if (begin < text.size()) lines.push_back(text.substr(begin));
    return lines;
}

/// The argument of -p: a file's content or the text itself, without lines that begin with #.
Result<Json> parameter_object(std::string const& argument) {
    if (trim(argument).empty()) return Json::object();
    auto text = argument;
    std::string source = "the JSON after -p";
    std::error_code error;
    if (argument.find('\0') == std::string::npos && std::filesystem::is_regular_file(argument, error)) {
        if (std::filesystem::file_size(argument, error) > kLargestParameterFile)
            return fail(ErrorKind::Invalid, "the parameter file {} is larger than 4 MiB", argument);
        if (auto content = read_file(argument)) { // what cannot be read is taken for JSON
            text = std::move(*content);
            source = "the parameter file " + argument;
        }
    }
    std::string kept;
    for (auto line : lines_of(text)) {
        if (trim(line).starts_with('#')) continue;
        kept.append(line);
        kept.push_back('\n');
    }
    if (trim(kept).empty()) return Json::object();
    auto json = parse_json(kept);
    if (!json) return fail(ErrorKind::Invalid, "{} is neither a readable file nor JSON", source);
    if (!json->is_object()) return fail(ErrorKind::Invalid, "{} is no object", source);
    return json;
}

Result<void> add_groups(std::string const& argument, std::string_view option, std::vector<std::string>& groups) {
    for (auto& group : split(argument, ',')) {
        if (trim(group).empty()) return fail(ErrorKind::Invalid, "{} \"{}\" holds an empty name of a file group", option, argument);
        groups.push_back(std::move(group));
    }
    if (argument.empty()) return fail(ErrorKind::Invalid, "{} names no file group", option);
    return {};
}

Result<WorkflowTask> parse_task(std::string_view line) {
    auto words = split_shell_words(line);
    if (!words) return fail(words.error());
    WorkflowTask task;
    if (words->front().empty()) return fail(ErrorKind::Invalid, "the name of the Processor is empty");
    task.processor = "ocrd-" + words->front();

    std::size_t at = 1;
    while (at < words->size()) {
        auto const& option = (*words)[at];
        auto following = words->size() - at - 1;
        if (option == "-I" || option == "-O" || option == "-p") {
            if (following < 1) return fail(ErrorKind::Invalid, "{} needs a word after it", option);
            auto const& argument = (*words)[at + 1];
            if (option == "-p") {
                auto object = parameter_object(argument);
                if (!object) return fail(object.error());
                task.parameters.update(*object);
            } else if (auto added = add_groups(argument, option, option == "-I" ? task.input_groups : task.output_groups); !added) {
                return fail(added.error());
            }
            at += 2;
        } else if (option == "-P") {
            if (following < 2) return fail(ErrorKind::Invalid, "-P needs a key and a value after it");
            auto const& value = (*words)[at + 2];
            auto json = parse_json(value);
            task.parameters[(*words)[at + 1]] = json ? std::move(*json) : Json(value);
            at += 3;
        } else if (option.starts_with('-')) {
            return fail(ErrorKind::Invalid, "unknown option \"{}\"; a task has -I, -O, -p and -P", option);
        } else {
            return fail(ErrorKind::Invalid, "\"{}\" is neither an option nor the argument of one", option);
        }
    }
    if (task.input_groups.empty()) return fail(ErrorKind::Invalid, "{} has no input file group (-I)", task.processor);
    if (task.output_groups.empty()) return fail(ErrorKind::Invalid, "{} has no output file group (-O)", task.processor);
    return task;
}

} // namespace

Result<std::vector<std::string>> split_shell_words(std::string_view line) {
    std::vector<std::string> words;
    std::string word;
    bool in_word = false;
    char quote = 0;
    for (std::size_t at = 0; at < line.size(); ++at) {
        char c = line[at];
        if (quote == '\'') {
            if (c == '\'') quote = 0;
            else word.push_back(c);
        } else if (quote == '"') {
            if (c == '"') {
                quote = 0;
            } else if (c == '\\' && at + 1 < line.size() && (line[at + 1] == '"' || line[at + 1] == '\\')) {
                word.push_back(line[++at]);
            } else {
                word.push_back(c);
            }
        } else if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
            if (in_word) words.push_back(std::move(word));
            word.clear();
            in_word = false;
        } else {
            in_word = true;
            if (c == '\'' || c == '"') {
                quote = c;
            } else if (c == '\\') {
                if (at + 1 == line.size()) return fail(ErrorKind::Invalid, "nothing follows the backslash at the end");
                word.push_back(line[++at]);
            } else {
                word.push_back(c);
            }
        }
    }
    if (quote) return fail(ErrorKind::Invalid, "a quote ({}) is not closed", quote);
    if (in_word) words.push_back(std::move(word));
    return words;
}

Result<std::vector<WorkflowTask>> parse_workflow(std::string_view script) {
    if (script.starts_with("\xEF\xBB\xBF")) script.remove_prefix(3); // a byte order mark is no part of a name
    std::vector<WorkflowTask> tasks;
    int number = 0;
    for (auto line : lines_of(script)) {
        ++number;
        if (trim(line).empty()) continue;
        auto task = parse_task(line);
        if (!task) {
            auto comment = trim(line).starts_with('#') ? " (a workflow has no comments)" : "";
            return fail(ErrorKind::Invalid, "line {} of the workflow: {}{}", number, task.error().message(), comment);
        }
        task->line = number;
        tasks.push_back(std::move(*task));
    }
    if (tasks.empty()) return fail(ErrorKind::Invalid, "the workflow has no task");
    return tasks;
}

std::vector<std::vector<std::size_t>> dependencies(std::vector<WorkflowTask> const& tasks) {
    std::vector<std::vector<std::size_t>> all;
    std::map<std::string, std::size_t, std::less<>> latest;
    for (std::size_t index = 0; index < tasks.size(); ++index) {
        std::vector<std::size_t> needed;
        for (auto const& group : tasks[index].input_groups)
            if (auto found = latest.find(group); found != latest.end() && std::ranges::find(needed, found->second) == needed.end())
                needed.push_back(found->second);
        all.push_back(std::move(needed));
        for (auto const& group : tasks[index].output_groups) latest[group] = index;
    }
    return all;
}

} // namespace ocrctl::server
