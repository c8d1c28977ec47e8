// Names in the broker (docs/contracts.md, "Names and ids").
#pragma once

#include "lib/queue/broker.hpp"
#include "processing_server/settings.hpp"

#include <cstdint>
#include <fmt/format.h>
#include <string>
#include <string_view>

namespace ocrctl::server {

inline constexpr int kResultQueues = 16;

inline std::string work_queue(std::string_view deployment, std::string_view target) { return fmt::format("ocrctl.{}.{}", deployment, target); }
inline std::string result_queue(std::string_view deployment, int index) { return fmt::format("ocrctl.{}.results.{}", deployment, index); }
inline std::string epoch_queue(std::string_view deployment) { return fmt::format("ocrctl.{}.epoch", deployment); }

/// The same for a Workspace on every start of every server (FNV-1a): its results come in one queue, in order.
inline int result_index(std::string_view workspace) {
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (unsigned char c : workspace) hash = (hash ^ c) * 0x100000001b3u;
    return static_cast<int>(hash % kResultQueues);
}

/// OCR-D's exchange and queues, as the deployment's Workers declare them.
inline queue::OcrdTopology ocrd_topology(Settings const& settings) {
    return {.durable_exchange = settings.ocrd_durable_exchange, .durable_queues = settings.ocrd_durable_queues};
}

} // namespace ocrctl::server
