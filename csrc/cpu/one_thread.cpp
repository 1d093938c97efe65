#include "one_thread.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace cacovid {
namespace {

// The functions of the OpenMP library that PyTorch runs on. Linked directly, they might be those of
// another copy of it, whose numbers nobody reads.
struct OpenMP {
  int (*get_max_threads)() = nullptr;
  void (*set_num_threads)(int) = nullptr;

  OpenMP() {
#if defined(__unix__) || defined(__APPLE__)
#if defined(__APPLE__)
    const char* torch = "libtorch_cpu.dylib";
#else
    const char* torch = "libtorch_cpu.so";
#endif
    void* library = dlopen(torch, RTLD_LAZY | RTLD_NOLOAD);
    void* handle = library != nullptr ? library : RTLD_DEFAULT;
    get_max_threads = reinterpret_cast<int (*)()>(dlsym(handle, "omp_get_max_threads"));
    set_num_threads = reinterpret_cast<void (*)(int)>(dlsym(handle, "omp_set_num_threads"));
#endif
  }

  bool there() const { return get_max_threads != nullptr && set_num_threads != nullptr; }
};

const OpenMP& openmp() {
  static const OpenMP found;
  return found;
}

}  // namespace

OneThread::OneThread() : before_(openmp().there() ? openmp().get_max_threads() : 0) {
  if (before_ > 1) openmp().set_num_threads(1);
}

OneThread::~OneThread() {
  if (before_ > 1) openmp().set_num_threads(before_);
}

}  // namespace cacovid
