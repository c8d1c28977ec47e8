// start_program HOSTDIR LIMIT_MS: what `ocrctl host start` does; prints its report.
#include "lib/hostops/start.hpp"

#include <cstdlib>
#include <fmt/format.h>

int main(int argc, char** argv) {
    using namespace ocrctl;
    if (argc != 3) return 2;
    auto report = hostops::start(argv[1], std::chrono::milliseconds(std::atoi(argv[2])));
    if (!report) {
        fmt::print(stderr, "{}\n", report.error().message());
        return report.error().exit_code();
    }
    fmt::print("{}\n", dump(Json(*report)));
    return 0;
}
