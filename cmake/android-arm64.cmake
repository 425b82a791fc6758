# Debian's clang and lld with the sysroot that android/sysroot.mjs makes, in the place of an NDK.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(ANDROID ON)
set(DROID_ANDROID_SYSROOT "" CACHE PATH "what android/sysroot.mjs made")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES DROID_ANDROID_SYSROOT)
set(CMAKE_SYSROOT "${DROID_ANDROID_SYSROOT}")
set(CMAKE_C_COMPILER clang-19)
set(CMAKE_CXX_COMPILER clang++-19)
set(CMAKE_ASM_COMPILER clang-19)
set(CMAKE_LINKER ld.lld-19)
set(CMAKE_AR llvm-ar-19)
set(CMAKE_RANLIB llvm-ranlib-19)
set(CMAKE_OBJCOPY llvm-objcopy-19)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

# Not CMAKE_CXX_FLAGS_INIT: cmake-js sets CMAKE_CXX_FLAGS, which then counts for nothing.
set(target --target=aarch64-linux-android24)
set(include "${DROID_ANDROID_SYSROOT}/usr/include")
# What libc++ would have in its __config_site; and its headers before bionic's, those before musl's: each takes the next
# file of its name.
set(libcxx -nostdinc++ "SHELL:-isystem \"${include}/c++/v1\"" -D_LIBCPP_ABI_VERSION=1 -D_LIBCPP_ABI_NAMESPACE=__ndk1
    -D_LIBCPP_HAS_NO_VENDOR_AVAILABILITY_ANNOTATIONS -D_LIBCPP_DISABLE_VISIBILITY_ANNOTATIONS)
add_compile_options(${target} "$<$<COMPILE_LANGUAGE:CXX>:${libcxx}>" "SHELL:-isystem \"${include}/bionic\"")
# The builtins of this machine's clang are for this machine.
add_link_options(${target} "-resource-dir=${DROID_ANDROID_SYSROOT}/compiler" -fuse-ld=lld-19 -rtlib=compiler-rt
    -unwindlib=libunwind -static-libstdc++)
