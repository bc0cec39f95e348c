// Streaming decompression: gzip by ISA-L, member after member, and zstd by libzstd, frame after frame.
//
// One call consumes some of the caller's input and fills some of the caller's output; the state between two calls is a
// few dozen KiB behind a type-tagged object. No threads, no callbacks, nothing of the caller's is kept.
#include <isa-l/igzip_lib.h>
#include <zstd.h>

#include <memory>
#include <new>

#include "napi.h"

namespace hawser {
namespace {

constexpr napi_type_tag kTag = {0x68617773657269ull, 0x6e666c61746572ull};

// Longest name or comment that Go takes in a gzip header, with its NUL byte.
constexpr size_t kText = 512;

// Statuses of step(), as in binding.d.ts.
constexpr int64_t kMore = 0, kBoundary = 1, kCorrupt = -1;

class Inflater {
 public:
  virtual ~Inflater() = default;
  // Consumes from `in` and produces into `out`; both are advanced.
  virtual int64_t step(Bytes &in, Bytes &out) = 0;
};

class Gzip final : public Inflater {
 public:
  Gzip() { reset(); }

  int64_t step(Bytes &in, Bytes &out) override {
    // Bytes after a complete member begin another one; a member is begun only when there is a byte of it.
    if (state_.block_state == ISAL_BLOCK_FINISH) {
      if (!in.size) return kBoundary;
      reset();
    }
    state_.next_in = in.data, state_.avail_in = static_cast<uint32_t>(in.size);
    state_.next_out = out.data, state_.avail_out = static_cast<uint32_t>(out.size);
    int status = in_header_ ? isal_read_gzip_header(&state_, &header_) : ISAL_DECOMP_OK;
    // unpigz refuses flags that are reserved (RFC 1952, 2.3.1.2), Go names and comments that are long.
    if (in_header_ && status == ISAL_DECOMP_OK && (header_.flags & 0xe0)) return kCorrupt;
    if (status == ISAL_DECOMP_OK) {
      in_header_ = false;
      status = isal_inflate(&state_);
    }
    in = {state_.next_in, state_.avail_in};
    out = {state_.next_out, state_.avail_out};
    if (status != ISAL_DECOMP_OK && status != ISAL_END_INPUT) return kCorrupt;
    return state_.block_state == ISAL_BLOCK_FINISH ? kBoundary : kMore;
  }

 private:
  // isal_inflate would read headers itself, but (as of 2.30) forgets the flags of one that comes in two inputs.
  void reset() {
    isal_inflate_init(&state_);
    isal_gzip_header_init(&header_);
    header_.name = name_, header_.name_buf_len = sizeof name_;
    header_.comment = comment_, header_.comment_buf_len = sizeof comment_;
    state_.crc_flag = ISAL_GZIP_NO_HDR_VER;  // Reads the trailer, and checks CRC and length.
    in_header_ = true;
  }

  inflate_state state_;
  isal_gzip_header header_;
  char name_[kText], comment_[kText];
  bool in_header_ = true;
};

class Zstd final : public Inflater {
 public:
  Zstd() : context_(ZSTD_createDCtx()) {}

  bool valid() const { return context_ != nullptr; }

  int64_t step(Bytes &in, Bytes &out) override {
    // Called with nothing after a frame, libzstd would ask for the next one; there may be none.
    if (at_boundary_ && !in.size) return kBoundary;
    ZSTD_inBuffer source = {in.data, in.size, 0};
    ZSTD_outBuffer target = {out.data, out.size, 0};
    size_t status = ZSTD_decompressStream(context_.get(), &target, &source);
    in = {in.data + source.pos, in.size - source.pos};
    out = {out.data + target.pos, out.size - target.pos};
    if (ZSTD_isError(status)) return kCorrupt;
    at_boundary_ = status == 0;
    return at_boundary_ ? kBoundary : kMore;
  }

 private:
  struct Free {
    void operator()(ZSTD_DCtx *context) const { ZSTD_freeDCtx(context); }
  };
  std::unique_ptr<ZSTD_DCtx, Free> context_;
  bool at_boundary_ = false;
};

void finalize(napi_env, void *data, void *) { delete static_cast<Inflater *>(data); }

napi_value wrap(napi_env env, Inflater *inflater) {
  napi_value object = nullptr;
  if (!inflater) {
    napi_throw_error(env, "ERR_MEMORY", "no memory for a decompressor");
    return nullptr;
  }
  napi_create_object(env, &object);
  napi_type_tag_object(env, object, &kTag);
  napi_wrap(env, object, inflater, finalize, nullptr, nullptr);
  return object;
}

napi_value create_gzip(napi_env env, napi_callback_info) { return wrap(env, new (std::nothrow) Gzip()); }

napi_value create_zstd(napi_env env, napi_callback_info) {
  auto *zstd = new (std::nothrow) Zstd();
  if (zstd && zstd->valid()) return wrap(env, zstd);
  delete zstd;
  return wrap(env, nullptr);
}

// The inflater of an object that wrap() made and that was not released; else throws and returns nullptr.
Inflater *unwrap(napi_env env, napi_value object) {
  bool tagged = false;
  void *data = nullptr;
  if (napi_check_object_type_tag(env, object, &kTag, &tagged) == napi_ok && tagged &&
      napi_unwrap(env, object, &data) == napi_ok) {
    return static_cast<Inflater *>(data);
  }
  napi_throw_type_error(env, "ERR_INVALID_ARG", "an inflater was expected");
  return nullptr;
}

// release(inflater): gives its memory back now; it may be many MiB that the garbage collector knows nothing of.
napi_value release(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  if (!args.ok()) return nullptr;
  Inflater *inflater = unwrap(env, args.value(0));
  void *data = nullptr;
  if (inflater && napi_remove_wrap(env, args.value(0), &data) == napi_ok) delete inflater;
  return nullptr;
}

// inflate(inflater, input, inputStart, inputEnd, output, outputStart, outputEnd, results)
napi_value inflate(napi_env env, napi_callback_info info) {
  Args args(env, info, 8);
  if (!args.ok()) return nullptr;
  Inflater *inflater = unwrap(env, args.value(0));
  if (!inflater) return nullptr;
  Bytes in = args.slice(1, 2, 3), out = args.slice(4, 5, 6);
  double *results = args.results(7, 2);
  if (!args.ok()) return nullptr;
  const Bytes before_in = in, before_out = out;
  int64_t status = inflater->step(in, out);
  results[0] = static_cast<double>(before_in.size - in.size);
  results[1] = static_cast<double>(before_out.size - out.size);
  return number(env, status);
}

}  // namespace

void define_inflate(napi_env env, napi_value exports) {
  define(env, exports, "createGzip", create_gzip);
  define(env, exports, "createZstd", create_zstd);
  define(env, exports, "inflate", inflate);
  define(env, exports, "release", release);
}

}  // namespace hawser
