#pragma once

// A test harness for the C++ cores: TEST(name) { CHECK(...); } in any *_test.cc. The program runs every test, or those
// named on its command line; --list prints the names.

#include <cstdio>
#include <cstring>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace droid::test {

struct Case {
    const char * name;
    void (*run)();
};

inline std::vector<Case> & cases() {
    static std::vector<Case> list;
    return list;
}

struct Register {
    Register(const char * name, void (*run)()) { cases().push_back({name, run}); }
};

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A function, so that what a temporary refers to lives until it was compared.
template <typename Actual, typename Expected>
void check_equal(const std::string & what, const Actual & actual, const Expected & expected) {
    if (actual == expected) return;
    std::ostringstream text;
    text << what << " is " << actual << ", expected " << expected;
    throw Failure(text.str());
}

inline int main(int argc, char ** argv) {
    if (argc == 2 && !std::strcmp(argv[1], "--list")) {
        for (const Case & test : cases()) std::printf("%s\n", test.name);
        return 0;
    }
    int failed = 0;
    for (const Case & test : cases()) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted = wanted || !std::strcmp(argv[i], test.name);
        if (!wanted) continue;
        try {
            test.run();
            std::printf("ok %s\n", test.name);
        } catch (const std::exception & error) {
            failed++;
            std::printf("FAILED %s: %s\n", test.name, error.what());
        }
        std::fflush(stdout);
    }
    return failed ? 1 : 0;
}

}  // namespace droid::test

#define TEST(name)                                                       \
    static void test_##name();                                           \
    static ::droid::test::Register register_##name(#name, &test_##name); \
    static void test_##name()

#define CHECK(condition)                                                                                            \
    do {                                                                                                            \
        if (!(condition)) {                                                                                         \
            throw ::droid::test::Failure(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition); \
        }                                                                                                           \
    } while (0)

#define CHECK_EQUAL(actual, expected) \
    ::droid::test::check_equal(__FILE__ ":" + std::to_string(__LINE__) + ": " #actual, actual, expected)
