# The levels of instructions that a prebuilt addon carries, and how one library is made of them; see docs/prebuilds.md.

# Macs differ less, and their linker makes no objects like those below: one level for each architecture, that of the M1
# and of Haswell.
if (APPLE)
    set(GGML_CPU_ARM_ARCH armv8.2-a+dotprod+fp16 CACHE STRING "" FORCE)
    foreach (feature SSE42 AVX F16C FMA AVX2 BMI2)
        set(GGML_${feature} ON CACHE BOOL "" FORCE)
    endforeach()
    set(arch "${CMAKE_OSX_ARCHITECTURES}")
    if (NOT arch)
        set(arch "${CMAKE_SYSTEM_PROCESSOR}")
    endif()
    if (arch STREQUAL "arm64")
        set(DROID_CPU_LEVEL armv8.2)
    else()
        set(DROID_CPU_LEVEL avx2)
    endif()
    return()
endif()

# The features of each are those that llama.cpp knows for the architecture.
if (CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
    # Cortex-A53, -A73; Cortex-A75, -A76 (Snapdragon 845 and later); Cortex-A510, -A715, -X2 (Snapdragon 8 Gen 1 and
    # later). What SVE2 and SME would add on phones is nothing: their vectors have the length of NEON's.
    set(GGML_CPU_LEVELS armv8.0 armv8.2 armv8.6)
    set(GGML_CPU_LEVEL_armv8.0)
    set(GGML_CPU_LEVEL_armv8.2 DOTPROD FP16_VECTOR_ARITHMETIC)
    set(GGML_CPU_LEVEL_armv8.6 DOTPROD FP16_VECTOR_ARITHMETIC MATMUL_INT8)
elseif (CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
    # Since 2008, 2011, 2013, 2021 (Alder Lake), 2019 (Cascade Lake, Zen 4).
    set(GGML_CPU_LEVELS sse4.2 avx avx2 avx-vnni avx512-vnni)
    set(GGML_CPU_LEVEL_sse4.2 SSE42)
    set(GGML_CPU_LEVEL_avx SSE42 AVX)
    set(GGML_CPU_LEVEL_avx2 SSE42 AVX F16C FMA AVX2 BMI2)
    set(GGML_CPU_LEVEL_avx-vnni ${GGML_CPU_LEVEL_avx2} AVX_VNNI)
    set(GGML_CPU_LEVEL_avx512-vnni ${GGML_CPU_LEVEL_avx2} AVX512 AVX512_VNNI)
else()
    message(FATAL_ERROR "There are no levels for ${CMAKE_SYSTEM_PROCESSOR}; build without DROID_PREBUILT")
endif()

# What the rest of the addon calls of the CPU backend; levels.cc hands each on to the level that was chosen.
set(DROID_CPU_FUNCTIONS ggml_backend_cpu_reg ggml_get_type_traits_cpu ggml_graph_compute ggml_graph_plan
                        ggml_threadpool_free ggml_threadpool_new)

# Makes the library droid-cpu-levels and links it where llama.cpp expects its CPU backend. Each level becomes one object
# whose functions above have the level's name in front, and of which nothing else is seen: templates of the standard
# library that were compiled for AVX-512 must not be taken for everybody's.
function(droid_add_cpu_levels)
    set(objects)
    set(entries)
    foreach (level IN LISTS GGML_CPU_LEVELS)
        string(MAKE_C_IDENTIFIER "droid_${level}_" prefix)
        set(renamed "--redefine-sym=ggml_backend_score=${prefix}score")
        set(kept "--keep-global-symbol=${prefix}score")
        foreach (function IN LISTS DROID_CPU_FUNCTIONS)
            list(APPEND renamed "--redefine-sym=${function}=${prefix}${function}")
            list(APPEND kept "--keep-global-symbol=${prefix}${function}")
        endforeach()
        set(object "${CMAKE_CURRENT_BINARY_DIR}/cpu-${level}.o")
        add_custom_command(OUTPUT "${object}"
            # Groups of sections would be merged over levels by their names.
            COMMAND "${CMAKE_LINKER}" -r --force-group-allocation -o "${object}.whole"
                    --whole-archive "$<TARGET_FILE:ggml-cpu-${level}>"
            COMMAND "${CMAKE_OBJCOPY}" ${renamed} "${object}.whole" "${object}.renamed"
            COMMAND "${CMAKE_OBJCOPY}" ${kept} "${object}.renamed" "${object}"
            COMMAND "${CMAKE_COMMAND}" -E rm "${object}.whole" "${object}.renamed"
            DEPENDS "ggml-cpu-${level}" "$<TARGET_FILE:ggml-cpu-${level}>"
            COMMENT "Making one object of the CPU backend for ${level}"
            VERBATIM)
        list(APPEND objects "${object}")
        string(APPEND entries "LEVEL(${prefix}, \"${level}\")\n")
    endforeach()
    file(CONFIGURE OUTPUT cpu_levels.inc CONTENT "${entries}")
    add_library(droid-cpu-levels STATIC native/cpu/levels.cc ${objects})
    target_include_directories(droid-cpu-levels PRIVATE native "${CMAKE_CURRENT_BINARY_DIR}")
    target_link_libraries(droid-cpu-levels PRIVATE ggml-base)
    target_link_libraries(ggml PUBLIC droid-cpu-levels)
endfunction()
