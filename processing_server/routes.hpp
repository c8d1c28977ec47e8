// HTTP: OCR-D's routes with its statuses and shapes (network protocol 1.3 to 1.10), and ours under /v1. No rules live here.
#pragma once

#include "lib/async/event.hpp"
#include "lib/net/router.hpp"
#include "processing_server/agent_hub.hpp"
#include "processing_server/callbacks.hpp"
#include "processing_server/converger.hpp"
#include "processing_server/job_service.hpp"
#include "processing_server/results.hpp"

namespace ocrctl::server {

/// What the routes speak to; all of it outlives the router.
struct RouteContext {
    Settings const& settings;
    store::Store& store;
    JobService& jobs;
    ToolCatalogue& tools;
    JobBook& book;
    Dispatcher& dispatcher;
    Results& results;
    ForeignWorkers* foreign; // null: only managed Workers
    AgentHub& agents;
    Callbacks& callbacks;
    Converger* converger; // may be missing: a server without a deployment
    asio::thread_pool& pool;
    std::string const& url;
    bool const& started;
    Event& status_changed;   // something in /v1/status is different
    std::uint64_t& version;  // of the agents' part of it
};

void add_routes(net::Router& router, RouteContext context);

/// The document of GET /v1/status.
Json status_document(RouteContext const& context);

} // namespace ocrctl::server
