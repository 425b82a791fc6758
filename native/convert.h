#pragma once

#include <napi.h>

#include <map>
#include <string>
#include <vector>

namespace droid {

// Reading JS values that lib/ has already validated.

inline std::string get_string(const Napi::Object & from, const char * key) {
    const Napi::Value value = from.Get(key);
    return value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
}

inline double get_number(const Napi::Object & from, const char * key) {
    const Napi::Value value = from.Get(key);
    return value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : 0;
}

inline bool get_bool(const Napi::Object & from, const char * key) {
    return from.Get(key).ToBoolean();
}

inline std::vector<std::string> get_strings(const Napi::Object & from, const char * key) {
    const auto array = from.Get(key).As<Napi::Array>();
    std::vector<std::string> strings;
    for (uint32_t i = 0; i < array.Length(); i++) {
        strings.push_back(array.Get(i).As<Napi::String>().Utf8Value());
    }
    return strings;
}

inline std::vector<std::string> keys_of(const Napi::Object & from) {
    const auto names = from.GetPropertyNames();
    std::vector<std::string> keys;
    for (uint32_t i = 0; i < names.Length(); i++) {
        keys.push_back(names.Get(i).As<Napi::String>().Utf8Value());
    }
    return keys;
}

inline std::map<std::string, std::string> get_string_map(const Napi::Object & from, const char * key) {
    const auto object = from.Get(key).As<Napi::Object>();
    std::map<std::string, std::string> map;
    for (const std::string & name : keys_of(object)) {
        map[name] = get_string(object, name.c_str());
    }
    return map;
}

}  // namespace droid
