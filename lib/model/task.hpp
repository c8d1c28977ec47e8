// What a Worker is given and what it gives back (docs/contracts.md, "Broker"): the body of AMQP messages and of the frames
// between a Worker and its engine. Files are named by METS-relative path, never by absolute path; WorkspaceAccess on the
// Worker's side turns a workspace id into a local folder.
#pragma once

#include "lib/model/job.hpp"

#include <cstdint>

namespace ocrctl {

/// A file of a Workspace.
struct FileRef {
    std::string group, id, page_id, mimetype;
    std::string path;          // METS-relative, decoded
    std::uint64_t size = 0;    // bytes; 0 where not known
    std::string digest;        // "sha256:..." or ""
};

/// One page of a task: its inputs, one per input group, in the order of the groups.
struct PageInput {
    std::string page_id;
    std::vector<FileRef> files;
    std::vector<std::string> output_ids; // the file id to write, one per output group (OCR-D protocol 9.3)
};

/// One Job's (or shard's) work. Chunks of several tasks travel in one message; each is answered alone.
struct Task {
    JobId job;
    int shard = 0;
    int attempt = 1;
    Millis deadline = 0; // instant; 0: none
    std::string workspace;
    std::string mets_basename = "mets.xml";
    std::string processor;
    std::vector<std::string> input_groups, output_groups;
    std::vector<PageInput> pages;
    Json parameters = Json::object();
};

struct TaskMessage {
    int v = 1;
    Target target;
    std::string reply_to;
    std::vector<Task> tasks;
};

/// One page's end. A failing page fails alone; `retry` tells transient trouble (ESTALE, no memory) from a data error.
struct PageOutcome {
    std::string page_id;
    bool ok = false;
    std::string error; // one sentence if not ok
    bool retry = false;
    std::vector<FileRef> files;         // what was written, by final METS-relative path, with size and digest
    std::vector<std::string> warnings;
};

/// A METS agent to record, once per (step, version, parameters) and run.
struct Provenance {
    std::string name;     // "ocrd-ocrctl-binarize v0.1.0"
    std::string step;     // OTHERROLE: "preprocessing/optimization/binarization"
    Json parameters = Json::object();
};

/// What a run reports. Files lie in `staging` (METS-relative) under their final relative paths until the server
/// accepts the run and renames them.
struct TaskResult {
    int v = 1;
    JobId job;
    int shard = 0;
    int attempt = 1;
    RunId run;
    Slot slot;
    std::string staging; // ".ocrctl/<job>/<run>"
    std::vector<PageOutcome> pages;
    std::string error;          // the whole task failed: deadline, cancelled, engine died, ...
    bool engine_died = false;   // counts towards poison
    bool cancelled = false;
    Provenance provenance;
    std::string log;            // the end of what the run wrote, at most 64 KiB
    Millis started = 0, ended = 0;
};

void to_json(Json& json, FileRef const& file);
void from_json(Json const& json, FileRef& file);
void to_json(Json& json, PageInput const& page);
void from_json(Json const& json, PageInput& page);
void to_json(Json& json, Task const& task);
void from_json(Json const& json, Task& task);
void to_json(Json& json, TaskMessage const& message);
void from_json(Json const& json, TaskMessage& message);
void to_json(Json& json, PageOutcome const& outcome);
void from_json(Json const& json, PageOutcome& outcome);
void to_json(Json& json, Provenance const& provenance);
void from_json(Json const& json, Provenance& provenance);
void to_json(Json& json, TaskResult const& result);
void from_json(Json const& json, TaskResult& result);

/// The folder of a run, METS-relative.
std::string staging_folder(JobId const& job, RunId const& run);

/// The id of a new file as OCR-D makes it: the input id with the group name replaced; where it does not contain it,
/// <output group>_<page id>, or _<input id> when the input id contains the page id (OCR-D protocol 9.3).
std::string output_file_id(FileRef const& input, std::string const& output_group);

} // namespace ocrctl
