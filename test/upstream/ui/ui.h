// llama-server's web page, left out: this is what tools/ui generates when it has no assets.
#pragma once

#include <array>
#include <cstddef>
#include <string>

struct llama_ui_asset {
    std::string name;
    const unsigned char * data;
    std::size_t size;
    std::string etag;
    std::string type;
};

inline const std::array<llama_ui_asset, 0> & llama_ui_get_assets() {
    static const std::array<llama_ui_asset, 0> none{};
    return none;
}
