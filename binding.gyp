{
  # A shim: prebuildify and node-gyp run this action, and CMake does the build (see CMakeLists.txt).
  "targets": [
    {
      "target_name": "droid-llama",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": [],
          "outputs": ["<(module_root_dir)/build/Release/droid-llama.node"],
          "action": ["node", "<(module_root_dir)/scripts/build.mjs", "--portable"]
        }
      ]
    }
  ]
}
