# What every target shares: language, warnings, sanitizers, ccache; and the function that makes a folder a library.
set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE})
endif()

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(Boost 1.81 REQUIRED)

add_library(ocrctl_build INTERFACE)
target_compile_options(ocrctl_build INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wno-missing-field-initializers)
target_compile_definitions(ocrctl_build INTERFACE
  BOOST_ASIO_SEPARATE_COMPILATION BOOST_BEAST_SEPARATE_COMPILATION BOOST_ASIO_NO_DEPRECATED
  BOOST_ASIO_DISABLE_BOOST_COROUTINE)
target_link_options(ocrctl_build INTERFACE -fuse-ld=lld)
target_include_directories(ocrctl_build INTERFACE ${PROJECT_SOURCE_DIR})
if(OCRCTL_WERROR)
  target_compile_options(ocrctl_build INTERFACE -Werror)
endif()
if(OCRCTL_SANITIZE)
  target_compile_options(ocrctl_build INTERFACE -fsanitize=${OCRCTL_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(ocrctl_build INTERFACE -fsanitize=${OCRCTL_SANITIZE})
  if(OCRCTL_SANITIZE MATCHES "undefined")
    target_compile_options(ocrctl_build INTERFACE -fno-sanitize-recover=undefined -fno-sanitize=vptr)
  endif()
endif()

# ocrctl_library(queue SOURCES a.cpp HEADERS a.hpp LINK ocrctl::base PRIVATE_LINK rabbitmq)
# builds the folder's target ocrctl_queue with the alias ocrctl::queue; a folder is a target is a namespace.
function(ocrctl_library name)
  cmake_parse_arguments(A "" "" "SOURCES;HEADERS;LINK;PRIVATE_LINK" ${ARGN})
  add_library(ocrctl_${name} STATIC ${A_SOURCES})
  add_library(ocrctl::${name} ALIAS ocrctl_${name})
  target_sources(ocrctl_${name} PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${A_HEADERS})
  target_link_libraries(ocrctl_${name} PUBLIC ocrctl_build ${A_LINK} PRIVATE ${A_PRIVATE_LINK})
endfunction()

# ocrctl_test(unit base_test SOURCES x_test.cpp LINK ocrctl::base): a GoogleTest program, its label is the tier.
function(ocrctl_test tier name)
  cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE ocrctl_build ${A_LINK} GTest::gtest GTest::gtest_main)
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name} --gtest_brief=0)
  set_tests_properties(${name} PROPERTIES LABELS ${tier} TIMEOUT ${A_TIMEOUT}
    ENVIRONMENT "OMP_THREAD_LIMIT=1;ASAN_OPTIONS=detect_leaks=1;OCRCTL_SOURCE_DIR=${PROJECT_SOURCE_DIR};OCRCTL_BINARY=$<$<TARGET_EXISTS:ocrctl>:$<TARGET_FILE:ocrctl>>")
endfunction()
