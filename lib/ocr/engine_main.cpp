// ocrctl-engine: the OCR code in a process of its own, started by a Worker or a command over an inherited socket.
//   ocrctl-engine serve FD
//   ocrctl-engine page REQUEST.json      one page request from a file, the answer on stdout: for trying out
#include "lib/base/files.hpp"
#include "lib/ocr/engine.hpp"
#include "lib/tools/catalogue.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <opencv2/core/utility.hpp>
#include <string>
#include <unistd.h>

namespace {

// libgomp reads OMP_THREAD_LIMIT when it is loaded: with more threads than cores Tesseract takes eight times as long,
// and setting it here comes too late for this process. So: set it, and start again.
void with_one_thread(char** argv) {
    if (std::getenv("OMP_THREAD_LIMIT")) return;
    ::setenv("OMP_THREAD_LIMIT", "1", 1);
    ::execv("/proc/self/exe", argv); // works for a program that exists in memory only, too
    std::perror("ocrctl-engine: start again with OMP_THREAD_LIMIT=1");
}

int usage() {
    std::fputs("usage: ocrctl-engine serve FD | page REQUEST.json | --version\n", stderr);
    return 2;
}

} // namespace

int main(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "--version") == 0) {
        std::printf("ocrctl-engine %s\n", std::string(ocrctl::tools::version()).c_str());
        return 0;
    }
    if (argc != 3) return usage();
    with_one_thread(argv);
    cv::setNumThreads(1); // the pool runs an engine per core
    if (std::strcmp(argv[1], "serve") == 0) {
        char* end = nullptr;
        long fd = std::strtol(argv[2], &end, 10);
        if (*end != '\0' || fd < 0) return usage();
        return ocrctl::ocr::serve(static_cast<int>(fd));
    }
    if (std::strcmp(argv[1], "page") == 0) {
        auto text = ocrctl::read_file(argv[2]);
        auto request = text ? ocrctl::parse_json(*text) : std::unexpected(text.error());
        if (!request) {
            std::fprintf(stderr, "ocrctl-engine: %s\n", request.error().message().c_str());
            return 1;
        }
        ocrctl::ocr::Processors processors;
        auto reply = ocrctl::ocr::answer(processors, *request);
        std::printf("%s\n", ocrctl::dump(reply).c_str());
        return reply.contains("outcome") && reply["outcome"].value("ok", false) ? 0 : 1;
    }
    return usage();
}
