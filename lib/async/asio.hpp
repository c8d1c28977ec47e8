// Asio as we use it: names only. One io thread runs the logic of a process; C clients that block have threads of
// their own (on_thread.hpp).
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace ocrctl {

namespace asio = boost::asio;
using asio::awaitable;
using asio::use_awaitable;
/// An operation whose error is part of the flow: `auto [error, n] = co_await socket.async_read_some(b, as_tuple);`
inline constexpr auto as_tuple = asio::as_tuple(asio::use_awaitable);

} // namespace ocrctl
