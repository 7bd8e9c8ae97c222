// Bytes of a file, and how they come into memory.
#ifndef RELAX_INPLACE_FILE_RANGE_H_
#define RELAX_INPLACE_FILE_RANGE_H_

#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <string>

namespace relax_inplace {

/*! \brief A file, and what it was like when it was opened. */
class OpenFile {
 public:
  /*!
   * \brief A descriptor of its own of an open file: one for all ranges, since a process may have
   *        only so many.
   * \param error 0, or what `errno` says; then there is no file.
   */
  static std::shared_ptr<const OpenFile> Of(int descriptor, int* error);
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int descriptor() const { return descriptor_; }

  /*! \brief Whether its size or its time is another than it was. */
  bool HasChanged() const;

 private:
  OpenFile(int descriptor, const struct stat& state) : descriptor_(descriptor), state_(state) {}

  int descriptor_;
  struct stat state_;
};

/*! \brief The bytes of a tensor, in a file that is kept open. */
class FileRange {
 public:
  FileRange(int descriptor, int64_t offset, int64_t bytes);

  int64_t bytes() const { return bytes_; }

  /*! \brief Whether there is a file: see OpenFile::Of. */
  bool is_open() const { return file_ != nullptr; }

  /*! \brief Asks the system for the first bytes of it, so that they are there when they are read.
   */
  void Prefetch() const noexcept;

  /*!
   * \brief Reads bytes of it, and asks the system for those that come next.
   * \return 0; -1 if the file ends before; else what `errno` says.
   */
  int Read(int64_t begin, char* memory, int64_t bytes) const noexcept;

  /*! \brief Reads all of it, by some threads. \return As Read. */
  int ReadAll(char* memory, int threads) const noexcept;

  /*!
   * \brief What is wrong, after it has been read; empty if nothing is.
   * \param error What Read has returned. If it is 0, the file may have changed since this was made.
   */
  std::string ProblemAfter(int error) const;

 private:
  int64_t offset_;
  int64_t bytes_;
  int error_;  // why there is no file
  std::shared_ptr<const OpenFile> file_;
};

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_FILE_RANGE_H_
