// Just enough over Node-API's C functions to read arguments safely and in order.
//
// Numbers and strings are read before any pointer into a buffer is taken, since coercion can run JavaScript that moves
// or detaches it. A wrong argument throws a TypeError and makes `ok()` false; the caller then returns at once.
#pragma once

#include <node_api.h>

#include <cstddef>
#include <cstdint>

namespace hawser {

struct Bytes {
  uint8_t *data;
  size_t size;
};

class Args {
 public:
  static constexpr size_t kMax = 12;

  Args(napi_env env, napi_callback_info info, size_t expected) : env_(env) {
    size_t count = kMax;
    ok_ = napi_get_cb_info(env, info, &count, values_, nullptr, nullptr) == napi_ok && count >= expected;
    if (!ok_) fail("too few arguments");
  }

  bool ok() const { return ok_; }
  napi_value value(size_t i) const { return values_[i]; }

  int64_t integer(size_t i) {
    int64_t value = 0;
    if (ok_ && napi_get_value_int64(env_, values_[i], &value) != napi_ok) fail("a number was expected");
    return value;
  }

  // A byte string ("latin1": one character per byte) of fewer than N bytes, without NUL bytes.
  template <size_t N>
  const char *name(size_t i, char (&buffer)[N]) {
    size_t length = 0;
    buffer[0] = 0;
    if (!ok_) return buffer;
    if (napi_get_value_string_latin1(env_, values_[i], nullptr, 0, &length) != napi_ok) {
      fail("a string was expected");
    } else if (length >= N) {
      fail("a name is too long");
    } else {
      napi_get_value_string_latin1(env_, values_[i], buffer, N, &length);
      for (size_t k = 0; k < length; k++)
        if (!buffer[k]) return fail("a name holds a NUL byte"), buffer;
    }
    return buffer;
  }

  Bytes bytes(size_t i) {
    napi_typedarray_type type;
    size_t length = 0;
    void *data = nullptr;
    if (!ok_) return {nullptr, 0};
    bool is = false;
    napi_is_typedarray(env_, values_[i], &is);
    if (!is || napi_get_typedarray_info(env_, values_[i], &type, &length, &data, nullptr, nullptr) != napi_ok ||
        type != napi_uint8_array) {
      fail("a Uint8Array was expected");
      return {nullptr, 0};
    }
    return {static_cast<uint8_t *>(data), length};
  }

  // The part [start, end) of a Uint8Array; the bounds are arguments themselves.
  Bytes slice(size_t i, size_t start_at, size_t end_at) {
    int64_t start = integer(start_at), end = integer(end_at);
    Bytes all = bytes(i);
    if (ok_ && (start < 0 || start > end || static_cast<uint64_t>(end) > all.size)) fail("range outside of the buffer");
    if (!ok_) return {nullptr, 0};
    return {all.data + start, static_cast<size_t>(end - start)};
  }

  // A Float64Array of at least `count` numbers to put results into.
  double *results(size_t i, size_t count) {
    napi_typedarray_type type;
    size_t length = 0;
    void *data = nullptr;
    if (!ok_) return nullptr;
    if (napi_get_typedarray_info(env_, values_[i], &type, &length, &data, nullptr, nullptr) != napi_ok ||
        type != napi_float64_array || length < count) {
      fail("a Float64Array was expected");
      return nullptr;
    }
    return static_cast<double *>(data);
  }

  void fail(const char *message) {
    if (ok_ || !thrown_) napi_throw_type_error(env_, "ERR_INVALID_ARG", message);
    ok_ = false;
    thrown_ = true;
  }

 private:
  napi_env env_;
  napi_value values_[kMax] = {};
  bool ok_ = false;
  bool thrown_ = false;
};

inline napi_value number(napi_env env, int64_t value) {
  napi_value result = nullptr;
  napi_create_int64(env, value, &result);
  return result;
}

void define(napi_env env, napi_value exports, const char *name, napi_callback callback);
void define_inflate(napi_env env, napi_value exports);
void define_fsat(napi_env env, napi_value exports);
void define_later(napi_env env, napi_value exports);
void define_thread(napi_env env, napi_value exports);
void define_notify(napi_env env, napi_value exports);

}  // namespace hawser
