# What llama.cpp compiles into its CPU backend, with that backend's instructions; see vendor/patches.
set(GGML_CPU_EXTRA_SOURCES "${CMAKE_CURRENT_LIST_DIR}/repack_buffer.cc")
get_filename_component(GGML_CPU_EXTRA_INCLUDE_DIRS "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
