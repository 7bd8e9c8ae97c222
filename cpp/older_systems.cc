// What the headers of newer compilers refer to, and systems of manylinux_2_28 do not have: it is
// defined here, so that the shared library runs there. cmake/exports.map keeps it in the library.
// The archive goes without: it is linked on the machine of those who use it.
//
// `make wheel` asks for manylinux_2_28: auditwheel names what is missing here.
#if defined(__linux__)
#define _GLIBCXX_EXTERN_TEMPLATE 0  // NOLINT: the constructor below is to be made here
#include <dlfcn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <new>
#include <sstream>

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#if defined(__x86_64__)
#define RELAX_INPLACE_FIRST_GLIBC "GLIBC_2.2.5"
#else
#define RELAX_INPLACE_FIRST_GLIBC "GLIBC_2.17"
#endif
// glibc 2.34 moved them from libdl to libc, where they have their old versions, too.
__asm__(".symver first_dlopen, dlopen@" RELAX_INPLACE_FIRST_GLIBC);
__asm__(".symver first_dlsym, dlsym@" RELAX_INPLACE_FIRST_GLIBC);
extern "C" {
void* first_dlopen(const char* name, int mode);
void* first_dlsym(void* library, const char* name);
void* dlopen(const char* name, int mode) noexcept { return first_dlopen(name, mode); }
void* dlsym(void* library, const char* name) noexcept { return first_dlsym(library, name); }
// glibc 2.33: before, there was __fxstat only. The kernel fills in the same struct here.
int fstat(int file, struct stat* state) noexcept {
  return static_cast<int>(syscall(SYS_fstat, file, state));
}
// glibc 2.32. That other threads may run is always right (libstdc++'s ext/atomicity.h).
extern char __libc_single_threaded;
char __libc_single_threaded = 0;
}
#endif

#if defined(_GLIBCXX_RELEASE) && _GLIBCXX_RELEASE >= 9
template std::ostringstream::basic_ostringstream();
#endif

#if defined(_GLIBCXX_RELEASE) && _GLIBCXX_RELEASE >= 11
void std::__throw_bad_array_new_length() { throw std::bad_array_new_length(); }
#endif

#if defined(_GLIBCXX_RELEASE) && _GLIBCXX_RELEASE >= 12
void std::condition_variable::wait(std::unique_lock<std::mutex>& lock) {
  pthread_cond_wait(native_handle(), lock.mutex()->native_handle());
}
#endif
#endif  // __linux__
