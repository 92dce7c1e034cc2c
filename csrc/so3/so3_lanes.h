// Loops over matrices, one matrix per lane; compiled once per instruction set (common/for_each_isa.h).
namespace MGRPO_NAMESPACE {

template <class T>
MGRPO_HD Mat3<Pack<T>> load_matrices(const Rows& rows, int64_t first, int valid) {
  Mat3<Pack<T>> a;
  load_rows(block_rows<T>(rows, first, valid), 9, &a.m[0][0]);
  return a;
}

template <class T>
void project_rows(const Rows& matrices, bool fix_det, T* out, int64_t begin, int64_t end) {
  constexpr int n = Pack<T>::kLanes;
  for (int64_t first = begin; first < end; first += n) {
    const int valid = static_cast<int>(first + n <= end ? n : end - first);
    const Mat3<Pack<T>> R = nearest_rotation(load_matrices<T>(matrices, first, valid), fix_det);
    store_rows(out + 9 * first, valid, 9, &R.m[0][0]);
  }
}

template <class T>
void project_rows_backward(const Rows& grad_R, const Rows& matrices, const Rows& R, bool fix_det, T* out, int64_t begin,
                           int64_t end) {
  constexpr int n = Pack<T>::kLanes;
  for (int64_t first = begin; first < end; first += n) {
    const int valid = static_cast<int>(first + n <= end ? n : end - first);
    const Mat3<Pack<T>> grad =
        polar_gradient(load_matrices<T>(grad_R, first, valid), load_matrices<T>(matrices, first, valid),
                       load_matrices<T>(R, first, valid), fix_det);
    store_rows(out + 9 * first, valid, 9, &grad.m[0][0]);
  }
}

}  // namespace MGRPO_NAMESPACE
