#include "lib/store/store.hpp"

#include <iterator>

namespace ocrctl::store {

Json status_json(Job const& job) {
    Json status = Json::object();
    auto text = [&](char const* key, std::string const& value) {
        if (!value.empty()) status[key] = value;
    };
    auto number = [&](char const* key, auto value) {
        if (value != 0) status[key] = value;
    };
    number("attempt", job.attempt);
    number("engine_deaths", job.engine_deaths);
    number("retries", job.retries);
    number("started", job.started);
    number("ended", job.ended);
    number("worker_pid", job.worker_pid);
    if (job.quarantined) status["quarantined"] = true;
    if (job.committed) status["committed"] = true;
    if (job.published) status["published"] = true;
    if (job.pages_left) status["pages_left"] = *job.pages_left;
    if (!job.pages_failed.empty()) status["pages_failed"] = job.pages_failed;
    text("reason", job.reason);
    text("log_file", job.log_file);
    text("slot", job.slot.str());
    return status;
}

void apply_status(Json const& status, Job& job) {
    job.attempt = status.value("attempt", 0);
    job.engine_deaths = status.value("engine_deaths", 0);
    job.retries = status.value("retries", 0);
    job.started = status.value("started", Millis{0});
    job.ended = status.value("ended", Millis{0});
    job.worker_pid = status.value("worker_pid", 0);
    job.quarantined = status.value("quarantined", false);
    job.committed = status.value("committed", false);
    job.published = status.value("published", false);
    job.pages_left.reset();
    if (auto left = status.find("pages_left"); left != status.end()) job.pages_left = left->get<std::vector<std::string>>();
    job.pages_failed = status.value("pages_failed", std::map<std::string, std::string>{});
    job.reason = status.value("reason", "");
    job.log_file = status.value("log_file", "");
    job.slot = Slot(status.value("slot", ""));
}

void Batch::update(Job const& job) { changes_.emplace_back(UpdateJob{job.id, job.state, dump(status_json(job))}); }

void Batch::append(Batch other) {
    changes_.insert(changes_.end(), std::make_move_iterator(other.changes_.begin()),
                    std::make_move_iterator(other.changes_.end()));
}

} // namespace ocrctl::store
