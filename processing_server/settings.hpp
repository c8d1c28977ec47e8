// What the Deployer tells the processing server: STATE/server.json (mode 0600), read once at start. Secrets are not in
// it, only the files that hold them. Unknown keys are ignored; a missing key keeps the default given here.
#pragma once

#include "lib/model/job.hpp"

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace ocrctl::server {

/// {"kind":"managed","count":4}: how many Workers of this Processor the configuration asks for, over all hosts.
struct ProcessorSettings {
    std::string kind = "managed"; // managed | foreign
    int count = 1;
    bool here = false;                      // some are on this machine, so its program can be asked what it is:
    std::string executable;                 // "" = the Processor's name, looked up in PATH
    std::map<std::string, std::string> env; // of those Workers
};

/// A supervised foreign Worker: which vhost is its own, so that it is known which Job it holds (docs/contracts.md, "Foreign Workers").
struct ForeignWorkerSettings {
    std::string slot;                // its unit's entry
    std::string processor;
    std::filesystem::path amqp_file; // holds the URL of its vhost; empty: it consumes on the common vhost, that of Settings::amqp_file
    std::string internal_url;        // how it reaches the server; "": Settings::internal_url
    bool agent = true;               // false: nobody reports of it, only the broker knows
};

/// server.json:
///   {"name":"demo", "deployment":"<id>", "listen":{"address":"127.0.0.1","port":8080},
///   "amqp_file":"/state/secrets/amqp",
///    "token_file":"/state/secrets/join-token", "workspaces":["/data"], "existing_output":"skip",
///    "consumer_timeout_s":1800, "processors":{"ocrd-ocrctl-binarize":{"kind":"managed","count":4}},
///    "log_level":"info", "max_body":16777216, "mongo_file":"/state/secrets/mongo-url",
///    "internal_url":"http://10.0.0.5:8080", "use_tcp_mets":false,
///    "foreign_workers":[{"slot":"ocr1/ocrd-dummy-1/shard-0/rep-0","processor":"ocrd-dummy","amqp_file":"/state/secrets/amqp-worker~ocr1~...",
///                        "internal_url":"http://10.0.0.5:8080", "agent":true}],
///    "ocrd_durable_exchange":false, "ocrd_durable_queues":false}
struct Settings {
    std::string name;                         // the deployment's name: part of queue names
    std::string deployment;                   // its id
    std::string address = "127.0.0.1";        // listen.address
    int port = 8080;                          // listen.port; 0: a free one
    std::filesystem::path amqp_file;          // holds the amqp:// URL; relative: below STATE
    std::filesystem::path token_file = "secrets/join-token"; // what agents show; relative: below STATE
    std::vector<std::filesystem::path> workspaces; // roots; empty: anywhere
    ExistingOutput existing_output = ExistingOutput::Skip;
    int consumer_timeout_s = 1800;            // what the broker enforces
    std::map<std::string, ProcessorSettings> processors;
    std::string log_level = "info";
    std::uint64_t max_body = 16u << 20;       // bytes of a request
    std::vector<std::filesystem::path> tools; // tool catalogues (ocrd-all-tool.json); STATE/tools.json is read too

    std::filesystem::path mongo_file;         // holds the mongodb:// URL; empty: the Store is SQLite, and there are no foreign Workers
    std::string internal_url;                 // how foreign Workers reach the server, http://, no slash at the end; "": its own URL
    bool use_tcp_mets = false;                // foreign Workers get the /tcp_mets URL instead of a socket path
    std::vector<ForeignWorkerSettings> foreign_workers;
    bool ocrd_durable_exchange = false;       // how OCR-D's exchange and queues are declared where they are missing: OCR-D 3.12.1 has
    bool ocrd_durable_queues = false; // neither durable; what exists is taken as it is

    std::filesystem::path state;              // STATE; not in the file
};

/// Reads STATE/server.json; relative paths become absolute below STATE. Errors: NotFound, Invalid (names key and file).
Result<Settings> read_settings(std::filesystem::path const& state);

} // namespace ocrctl::server
