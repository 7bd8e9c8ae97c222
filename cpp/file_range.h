// Bytes of a file, and how they come into memory.
#ifndef RELAX_INPLACE_FILE_RANGE_H_
#define RELAX_INPLACE_FILE_RANGE_H_

#include <sys/stat.h>

#include <cstdint>
#include <string>

namespace relax_inplace {

/*! \brief The bytes of a tensor, in a file that is kept open. */
class FileRange {
 public:
  /*! \param descriptor The file; a descriptor of its own is made. */
  FileRange(int descriptor, int64_t offset, int64_t bytes);
  ~FileRange();
  FileRange(const FileRange&) = delete;
  FileRange& operator=(const FileRange&) = delete;

  int64_t bytes() const { return bytes_; }

  /*! \brief Whether the descriptor could be duplicated: a process may have only so many. */
  bool is_open() const { return error_ == 0; }

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
  int descriptor_;
  int64_t offset_;
  int64_t bytes_;
  int error_;  // of the descriptor
  struct stat state_;
};

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_FILE_RANGE_H_
