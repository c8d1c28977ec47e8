// The built-in Processors, page by page: what an engine runs.
#pragma once

#include "lib/model/task.hpp"
#include "lib/ocr/models.hpp"

#include <filesystem>
#include <string>
#include <vector>

namespace ocrctl::ocr {

struct PageJob {
    std::string processor;
    Json parameters = Json::object(); // as given; defaults are filled in
    std::filesystem::path workspace, staging;
    std::vector<std::string> input_groups, output_groups;
    PageInput page;
};

/// Runs pages one after another; owns the loaded models. Not thread-safe, one owner.
class Processors {
public:
    /// Checks that the Processor exists and loads its models. NotFound, Invalid.
    Result<Provenance> load(std::string const& processor, Json const& parameters);

    /// One page; every trouble is in the outcome. Files are written to the staging folder and flushed. `log` gets what
    /// there is to say about the page, a line each.
    ///
    /// An image input may name one page of a multi-page file: "scan.tif?frame=2" is its third.
    PageOutcome page(PageJob const& job, std::string& log);

private:
    ModelCache models_;
};

} // namespace ocrctl::ocr
