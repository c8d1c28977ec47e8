// What a foreign Worker is sent (network protocol 3.3). Pure.
#pragma once

#include "lib/model/job.hpp"

#include <string>
#include <string_view>

namespace ocrctl::server {

/// The processing message: JSON that a YAML 1.1 loader reads as the same values, keys sorted. Optional keys are there
/// or left out, never null. `path_to_mets`: what the row of the workspace says; `page_id` "": all pages;
/// `internal_url`: how Workers reach this server. The client's callback_url and result_queue_name are not in it: a
/// Worker that cannot serve them exits (3.5), so the server does that itself.
std::string foreign_message(Job const& job, std::string const& path_to_mets, std::string const& page_id,
                            std::string const& internal_url, Millis now);

/// A JSON value so that YAML 1.1 (PyYAML) reads it back: numbers with an exponent have a point, characters that YAML
/// does not take are escaped, all others stay as they are.
std::string yaml_safe_json(Json const& value);

} // namespace ocrctl::server
