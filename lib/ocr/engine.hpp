// The engine's side of the frames between it and its Worker: 4 bytes of length (big endian) and a JSON document, one
// request at a time, answered in order.
#pragma once

#include "lib/ocr/processors.hpp"

namespace ocrctl::ocr {

/// Answers one request: load, page, frames. What escapes from a Processor is that request's error.
Json answer(Processors& processors, Json const& request);

/// Reads requests from the socket until it closes or {"op":"quit"} comes. 0, or 1 after a torn frame.
int serve(int socket);

} // namespace ocrctl::ocr
