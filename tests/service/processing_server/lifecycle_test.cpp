#include "tests/service/processing_server/harness.hpp"
