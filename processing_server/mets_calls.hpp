// The calls of OCR-D's METS server (network protocol 5.2), apart from how they arrive: HTTP to a call, a call on a METS
// to its answer. No I/O.
#pragma once

#include "lib/mets/mets.hpp"
#include "lib/net/http.hpp"

#include <expected>
#include <optional>

namespace ocrctl::server {

/// What arrives, on a socket or packed into a body of /tcp_mets.
struct MetsRequest {
    std::string method;
    std::string path;                                        // "file", "reload", ...; "" for the root
    std::vector<std::pair<std::string, std::string>> fields; // of the query, or of the form
    std::optional<Json> body;                                // a JSON body
};

struct MetsCall {
    enum class What { WorkspacePath, Identifier, Pages, Groups, Agents, AddAgent, Find, AddFile, Save, Reload, Stop };
    What what = What::WorkspacePath;
    mets::Query query;       // Find
    mets::Addition addition; // AddFile
    mets::Agent agent;       // AddAgent
    Json given;              // AddAgent, AddFile: what the answer repeats
};

/// A call, or its refusal: 404, 405, 422 in the shape of FastAPI ({"detail":[{"type","loc","msg","input"}]}).
std::expected<MetsCall, net::Response> read_call(MetsRequest request);

/// The answer to a call that only reads: all but AddAgent, AddFile, Save, Reload, Stop.
net::Response look_up(MetsCall const& call, mets::Mets const& mets, std::string const& folder);

/// A call that the METS refuses: 400 with a JSON string, as the client reads it; else the status of the error's kind.
net::Response refused_call(Error const& problem);

/// A body of POST /tcp_mets (5.4).
struct PackedCall {
    std::string workspace_path;
    std::string response_type; // text, class, dict, empty
    MetsRequest request;
};
/// 422 for a body that is none.
std::expected<PackedCall, net::Response> unpack(Json const& body);
/// True for the one call whose client looks at the status of /tcp_mets and at nothing else.
bool adds_file(MetsRequest const& request);
/// The answer of a call as /tcp_mets gives it: 200 {"text": ...}, the JSON itself, {}, or {"error": "<the body>"}. A
/// refused addition keeps its status: with OCR-D's 200 its client takes it for done, and the page lacks in the METS.
net::Response pack(net::Response answer, std::string const& response_type, bool addition);

} // namespace ocrctl::server
