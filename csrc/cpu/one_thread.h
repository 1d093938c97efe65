// Products of libraries as they are with one thread, whatever the number of threads.
#pragma once

namespace cacovid {

// While it lives, what the calling thread starts through OpenMP is planned for one thread.
//
// oneDNN plans a product for the number of threads that it finds, even where it may use one alone,
// and another plan may add in another order. In a parallel region this concerns the calling thread
// only; outside, the number is put back.
class OneThread {
 public:
  OneThread();
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;  // 0: nothing was changed
};

}  // namespace cacovid
