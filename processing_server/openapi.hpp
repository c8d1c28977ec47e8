// The description of the routes: /openapi.json for programs, /docs for people. The text is in
// processing_server/openapi.json.
#pragma once

#include "lib/net/router.hpp"

#include <string>

namespace ocrctl::server {

/// An OpenAPI 3.1 document with every route of the router. One that openapi.json does not describe is there with
/// "x-undocumented": true; a test finds it.
Json openapi(net::Router const& router);

/// The same as one HTML page that needs nothing from elsewhere.
std::string docs_page(Json const& document);

} // namespace ocrctl::server
