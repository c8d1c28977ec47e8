// The one list of field names: a grep for job=... shows a Job's life across processes.
#pragma once

namespace ocrctl::log::field {
inline constexpr char kDeployment[] = "deployment";
inline constexpr char kHost[] = "host";
inline constexpr char kEntry[] = "entry";
inline constexpr char kSlot[] = "slot";
inline constexpr char kJob[] = "job";
inline constexpr char kRun[] = "run";
inline constexpr char kAttempt[] = "attempt";
inline constexpr char kWorkflow[] = "workflow";
inline constexpr char kWorkspace[] = "workspace";
inline constexpr char kProcessor[] = "processor";
inline constexpr char kQueue[] = "queue";
inline constexpr char kPid[] = "pid";
inline constexpr char kAddress[] = "address";
inline constexpr char kPath[] = "path";
inline constexpr char kError[] = "error";
inline constexpr char kReason[] = "reason";
inline constexpr char kCount[] = "count";
inline constexpr char kAfterMs[] = "after_ms";
} // namespace ocrctl::log::field
