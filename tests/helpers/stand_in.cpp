// A second device for a machine without one. Its memory is the host's, its kernels are the CPU's; everything else is as
// on a GPU: tensors have to be moved, kernels run behind the host, memory is limited, and random numbers are its own.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/NativeFunctions.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <array>
#include <deque>
#include <map>
#include <mutex>

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);
constexpr int kMost = 2;  // devices

std::recursive_mutex mutex;
c10::DeviceIndex devices = 0;  // none until a test asks for them
thread_local c10::DeviceIndex current = 0;

// ---------------------------------------------------------------- memory

struct Memory {
  int64_t limit = int64_t(1) << 40, used = 0, peak = 0, cached = 0;
};
std::array<Memory, kMost> memories;

struct Block {
  void* data;
  int64_t size;
  c10::DeviceIndex device;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  {
    std::lock_guard guard(mutex);
    memories[block->device].used -= block->size;
    memories[block->device].cached += block->size;  // kept for the next tensor until the cache is emptied
  }
  std::free(block->data);
  delete block;
}

struct Allocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    std::lock_guard guard(mutex);
    auto& memory = memories[current];
    const auto size = static_cast<int64_t>(bytes);
    TORCH_CHECK_WITH(
        OutOfMemoryError, memory.used + size <= memory.limit, "Stand-in device out of memory: tried to allocate ", size,
        " bytes beside ", memory.used, " of ", memory.limit, ".");
    memory.used += size;
    memory.peak = std::max(memory.peak, memory.used);
    memory.cached = std::max<int64_t>(0, memory.cached - size);
    auto* block = new Block{std::malloc(std::max<size_t>(bytes, 1)), size, current};
    return {block->data, block, &release, c10::Device(kType, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool initialized() override { return devices > 0; }
  void emptyCache(c10::MempoolId_t) override {
    for (auto& memory : memories) memory.cached = 0;
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    const auto& memory = memories[index];
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = memory.used;
    stats.allocated_bytes[0].peak = memory.peak;
    stats.reserved_bytes[0].current = memory.used + memory.cached;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex index) override { memories[index].peak = memories[index].used; }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    const auto& memory = memories[index];
    return {memory.limit - memory.used, memory.limit};
  }
} allocator;
REGISTER_ALLOCATOR(kType, &allocator);

std::map<const char*, size_t> pins;  // page-locked host memory: address to size

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    std::lock_guard guard(mutex);
    auto* data = static_cast<char*>(std::malloc(std::max<size_t>(bytes, 1)));
    pins[data] = std::max<size_t>(bytes, 1);
    return {data, data, &unpin, c10::Device(c10::DeviceType::CPU)};
  }
  static void unpin(void* data) {
    {
      std::lock_guard guard(mutex);
      pins.erase(static_cast<char*>(data));
    }
    std::free(data);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} pinned;

bool is_pinned(const void* data) {
  std::lock_guard guard(mutex);
  auto next = pins.upper_bound(static_cast<const char*>(data));
  if (next == pins.begin()) return false;
  const auto& [start, size] = *std::prev(next);
  return data < start + size;
}

// ---------------------------------------------------------------- the stream: asynchronous copies, in order

struct Copy {
  at::Tensor from, to;
};
std::deque<Copy> pending;
int64_t asynchronous = 0;  // number of copies so far that the host did not wait for

at::Tensor on_host(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

void copy_now(const at::Tensor& from, const at::Tensor& to) {
  at::AutoDispatchBelowADInplaceOrView guard;
  on_host(to).copy_(on_host(from));
}

void synchronize() {
  std::lock_guard guard(mutex);
  while (!pending.empty()) {
    const auto [from, to] = pending.front();
    pending.pop_front();
    copy_now(from, to);
  }
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  std::lock_guard guard(mutex);
  // As on CUDA: the host's side has to be page-locked. Whoever reads or writes it before the copy gets other values.
  const bool waits = !non_blocking || !(from.is_cpu() ? is_pinned(from.data_ptr()) : to.is_cpu());
  if (waits) {
    synchronize();
    copy_now(from, to);
  } else {
    pending.push_back({from.detach(), to.detach()});
    ++asynchronous;
  }
  return to;
}

// ---------------------------------------------------------------- random numbers

struct GeneratorImpl final : at::CPUGeneratorImpl {
  explicit GeneratorImpl(c10::DeviceIndex index) {
    device_ = c10::Device(kType, index);
    key_set_ = kKeys;
  }
};

std::array<at::Generator, kMost> generators{at::make_generator<GeneratorImpl>(0), at::make_generator<GeneratorImpl>(1)};

// Let an operation of the CPU draw from the generator of the device.
struct Drawing {
  at::Generator host = at::globalContext().defaultGenerator(c10::Device(at::kCPU)), own = generators[current];
  at::Tensor before = host.get_state();
  Drawing() { host.set_state(own.get_state()); }
  ~Drawing() {
    own.set_state(host.get_state());
    host.set_state(before);
  }
};

// ---------------------------------------------------------------- kernels

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::lock_guard guard(mutex);
  synchronize();
  std::optional<Drawing> drawing;
  if (op.hasTag(at::Tag::nondeterministic_seeded)) drawing.emplace();
  at::native::cpu_fallback(op, stack);
}

struct On {  // the device of a new tensor
  c10::DeviceIndex before = current;
  explicit On(std::optional<c10::Device> device) {
    if (device && device->has_index()) current = device->index();
    TORCH_CHECK(current < devices, "There are ", int(devices), " stand-in devices.");
  }
  ~On() { current = before; }
};

at::Tensor empty(
    c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<c10::Layout>,
    std::optional<c10::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const On on(device);
  return at::detail::empty_generic(size, &allocator, kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<c10::Layout>,
    std::optional<c10::Device> device, std::optional<bool>) {
  const On on(device);
  return at::detail::empty_strided_generic(size, stride, &allocator, kKeys, c10::dtype_or_default(dtype));
}

at::Tensor as_strided(
    const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& self) {
  synchronize();
  return at::native::_local_scalar_dense_cpu(on_host(self));
}

// torch has no fallback for convolutions.
at::Tensor convolution(
    const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups) {
  synchronize();
  const auto b = bias && bias->defined() ? std::optional(on_host(*bias)) : std::nullopt;
  return at::convolution(
             on_host(input), on_host(weight), b, stride, padding, dilation, transposed, output_padding, groups)
      .to(input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  synchronize();
  const int64_t outputs = gradient.size(1);
  const auto [x, w, b] = at::convolution_backward(
      on_host(gradient), on_host(input), on_host(weight), at::IntArrayRef(outputs), stride, padding, dilation,
      transposed, output_padding, groups, mask);
  const auto back = [&](const at::Tensor& made) { return made.defined() ? made.to(input.device()) : made; };
  return {back(x), back(w), back(b)};
}

// It writes the running statistics without a word in its schema, so that the fallback would lose them.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& input, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& var, bool training, double momentum,
    double eps) {
  synchronize();
  const auto host = [](const std::optional<at::Tensor>& value) {
    return value && value->defined() ? std::optional(on_host(*value)) : std::nullopt;
  };
  const auto [output, mean_of_batch, inverse] = at::native_batch_norm(
      on_host(input), host(weight), host(bias), host(mean), host(var), training, momentum, eps);
  return {output.to(input.device()), mean_of_batch.to(input.device()), inverse.to(input.device())};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &as_strided);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("resize_", &at::native::resize_);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_.source_Storage", static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(&at::native::set_));
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("native_batch_norm", &batch_norm);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  using namespace at::autocast;
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(cross_entropy_loss, fp32)
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

// ---------------------------------------------------------------- what torch asks a device

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return devices > 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return devices > 0; }
  c10::DeviceIndex deviceCount() const override { return devices; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex index) const override { current = index; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override { return std::exchange(current, index); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return index < 0 ? current : std::exchange(current, index);
  }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  c10::Device getDeviceFromPtr(void*) const override { return {kType, current}; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    return generators[index < 0 ? current : index];
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<GeneratorImpl>(index < 0 ? current : index);
  }
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override { return {kType, std::exchange(current, device.index())}; }
  c10::Device getDevice() const override { return {kType, current}; }
  void setDevice(c10::Device device) const override { current = device.index(); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::DeviceIndex deviceCount() const noexcept override { return devices; }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override { synchronize(); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

const bool registered = [] {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

TORCH_LIBRARY(stand_in, m) {
  m.def("devices(int count) -> ()", [](int64_t count) { devices = static_cast<c10::DeviceIndex>(count); current = 0; });
  m.def("limit(int index, int bytes) -> ()", [](int64_t index, int64_t bytes) { memories[index].limit = bytes; });
  m.def("asynchronous_copies() -> int", [] { return asynchronous; });
  m.def("draw_from(Generator? generator) -> ()", [](at::Generator own) { generators[own.device().index()] = own; });
}

}  // namespace
