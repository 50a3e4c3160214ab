// Sums of products over two arrays whose axes are in any order, float32: a matrix product for each element of a batch.

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"
#include "product_kernels.h"
#include "xla/ffi/api/ffi.h"

namespace raylingvo {
namespace {

namespace ffi = xla::ffi;

// Parts of equal size for each thread: some threads are slower than others.
constexpr int64_t kPartsPerThread = 2;
// Multiplications that take as long as the copy of a number, about, where a core does 16 in a cycle (AVX-512 of Zen 4).
constexpr double kLeftCopy = 4, kRightCopy = 8, kTransposedCopy = 16;
// A part has at least so many multiplications: fewer are done before another thread wakes up.
constexpr int64_t kLeastPart = int64_t{1} << 19;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a product is cut into parts: num_rows x num_columns of them, of at most so many rows and columns each.
struct Cut {
  int64_t rows, columns, num_rows, num_columns;
};

// Parts copy what they read: each part of columns all of the left matrix, each part of rows all of the right one.
Cut CutInto(int64_t parts, const Product& product, const ProductKernels& kernels) {
  const int64_t row_tiles = CeilDiv(product.M, kernels.rows), column_tiles = CeilDiv(product.N, kernels.columns);
  Cut best{};
  double least = std::numeric_limits<double>::infinity();
  for (int64_t wanted = 1; wanted <= std::min(parts, row_tiles); ++wanted) {
    Cut cut;
    cut.rows = CeilDiv(row_tiles, wanted) * kernels.rows;
    cut.columns = CeilDiv(column_tiles, std::min(CeilDiv(parts, wanted), column_tiles)) * kernels.columns;
    cut.num_rows = CeilDiv(product.M, cut.rows);
    cut.num_columns = CeilDiv(product.N, cut.columns);
    // In multiplications. Of fewer parts than wanted, some threads have none.
    const double idle = std::max(0.0, 1 - 1.0 * cut.num_rows * cut.num_columns / parts) * product.M * product.N;
    const double copies = kLeftCopy * cut.num_columns * product.M +
                          (product.right_column == 1 ? kRightCopy : kTransposedCopy) * cut.num_rows * product.N;
    if (idle + copies < least) {
      least = idle + copies;
      best = cut;
    }
  }
  return best;
}

// An axis of the batch: its size, and the floats from one element to the next in the left, the right and the result.
struct BatchAxis {
  int64_t size, left, right, result;
};

// matrices: M, N, K, left's row and column, right's row and column, result's row. batch: of each axis a BatchAxis.
ffi::Error Einsum(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> left, ffi::Buffer<ffi::F32> right,
                  ffi::Result<ffi::Buffer<ffi::F32>> result, ffi::Span<const int64_t> matrices,
                  ffi::Span<const int64_t> batch, int64_t max_width) {
  const ProductKernels& kernels = PickProductKernels(max_width);
  const int64_t* s = matrices.begin();
  const Product whole{s[0], s[1], s[2], left.typed_data(), s[3], s[4], right.typed_data(), s[5], s[6],
                      result->typed_data(), s[7]};
  std::vector<BatchAxis> axes;
  int64_t num_products = 1;
  for (const int64_t* b = batch.begin(); b != batch.end(); b += 4) {
    axes.push_back({b[0], b[1], b[2], b[3]});
    num_products *= b[0];
  }
  if (num_products == 0 || whole.M == 0 || whole.N == 0) return ffi::Error::Success();
  if (whole.K == 0) {
    std::memset(result->typed_data(), 0, result->size_bytes());
    return ffi::Error::Success();
  }
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t work = whole.M * whole.N * whole.K;
  const int64_t worthwhile = std::max<int64_t>(1, work / kLeastPart);
  const int64_t wanted = threads == 1 ? 1 : CeilDiv(threads * kPartsPerThread, num_products);
  const Cut cut = CutInto(std::min(wanted, worthwhile), whole, kernels);
  const int64_t parts = cut.num_rows * cut.num_columns, num_parts = num_products * parts;
  // Small products are done several at a time.
  const int64_t at_once = std::max<int64_t>(1, std::min(kLeastPart / work, CeilDiv(num_parts, threads)));
  ParallelFor(pool, CeilDiv(num_parts, at_once), [&](int64_t task) {
    static thread_local std::vector<float> scratch;
    for (int64_t i = task * at_once; i < std::min(num_parts, (task + 1) * at_once); ++i) {
      Product part = whole;
      int64_t index = i / parts;
      for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
        const int64_t at = index % axis->size;
        index /= axis->size;
        part.left += at * axis->left;
        part.right += at * axis->right;
        part.result += at * axis->result;
      }
      const int64_t row = i % parts / cut.num_columns * cut.rows, column = i % cut.num_columns * cut.columns;
      part.M = std::min(cut.rows, whole.M - row);
      part.N = std::min(cut.columns, whole.N - column);
      part.left += row * part.left_row;
      part.right += column * part.right_column;
      part.result += row * part.result_row + column;
      kernels.multiply(part, scratch);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace raylingvo

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoEinsum(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoEinsum, raylingvo::Einsum,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<xla::ffi::Span<const int64_t>>("matrices")
                                  .Attr<xla::ffi::Span<const int64_t>>("batch")
                                  .Attr<int64_t>("max_width"));
