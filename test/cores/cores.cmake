# The library rpc-cores: native/rpc/ with ggml, and nothing of Node. For the tests here and the fuzz targets.
set(DROID_LLAMA_CPP "" CACHE PATH "patched llama.cpp sources")
if (NOT EXISTS "${DROID_LLAMA_CPP}/ggml/CMakeLists.txt")
    message(FATAL_ERROR "DROID_LLAMA_CPP is not a llama.cpp tree; run `npm run build`, which prepares one")
endif()
get_filename_component(root "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)

set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
add_compile_options("-ffile-prefix-map=${root}/=")

set(DROID_SANITIZE "" CACHE STRING "address, thread, undefined (comma-separated): passed to -fsanitize=")
string(REPLACE "," ";" sanitizers "${DROID_SANITIZE}")
foreach (sanitizer ${sanitizers})
    add_link_options(-fsanitize=${sanitizer})
    # ggml computes offsets from null pointers and the like, to no harm: undefined behaviour is looked for in ours only.
    if (NOT sanitizer STREQUAL "undefined")
        add_compile_options(-fsanitize=${sanitizer})
    endif()
endforeach()
if (sanitizers)
    add_compile_options(-fno-omit-frame-pointer -g1)
endif()

# As in the addon, apart from what finds its way onto other processors.
set(BUILD_SHARED_LIBS OFF CACHE BOOL "" FORCE)
foreach (off GGML_OPENMP GGML_RPC GGML_METAL GGML_BLAS GGML_ACCELERATE GGML_CCACHE)
    set(${off} OFF CACHE BOOL "" FORCE)
endforeach()
set(GGML_LLAMAFILE ON CACHE BOOL "" FORCE)
add_subdirectory("${DROID_LLAMA_CPP}/ggml" ggml EXCLUDE_FROM_ALL)

file(GLOB DROID_CORES CONFIGURE_DEPENDS "${root}/native/rpc/*.cc" "${root}/native/rpc/client/*.cc"
     "${root}/native/rpc/server/*.cc")
add_library(rpc-cores STATIC ${DROID_CORES})
target_include_directories(rpc-cores PUBLIC "${root}/native")
target_include_directories(rpc-cores SYSTEM PUBLIC "${DROID_LLAMA_CPP}/ggml/src")
target_link_libraries(rpc-cores PUBLIC ggml ggml-cpu ggml-base)
target_compile_options(rpc-cores PRIVATE -Wall -Wextra)
if ("undefined" IN_LIST sanitizers)
    target_compile_options(rpc-cores PUBLIC -fsanitize=undefined -fno-sanitize-recover=undefined)
endif()
