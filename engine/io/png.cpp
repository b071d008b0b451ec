#include "png.hpp"

#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstdlib>
#include <memory>

#include "engine/data/image_set.hpp"
#include "file.hpp"
#include "kernels/core/check.hpp"

namespace vqlab {
namespace {

constexpr size_t kLongText = 1024;  // bytes from which compression pays

struct Output {
  std::string bytes;
  std::string error;
  bool out_of_memory = false;
};

// libpng is C and reports errors by longjmp, which must not cross living C++ objects, nor may an exception
// cross libpng: so the callbacks below end every object's life before they call png_error.
void append_bytes(png_structp png, png_bytep data, size_t size) {
  Output* output = static_cast<Output*>(png_get_io_ptr(png));
  try {
    output->bytes.append(reinterpret_cast<const char*>(data), size);
    return;
  } catch (const std::bad_alloc&) {
    output->out_of_memory = true;
  }
  png_error(png, "out of memory");
}

void keep_error(png_structp png, png_const_charp message) {
  Output* output = static_cast<Output*>(png_get_error_ptr(png));
  try {
    output->error = message;
  } catch (const std::bad_alloc&) {
    output->out_of_memory = true;
  }
  png_longjmp(png, 1);
}

void ignore_warning(png_structp, png_const_charp) {}

png_voidp allocate(png_structp png, png_alloc_size_t size) {
  void* memory = std::malloc(size);
  if (!memory) static_cast<Output*>(png_get_mem_ptr(png))->out_of_memory = true;
  return memory;
}

void release(png_structp, png_voidp memory) { std::free(memory); }

// Owns libpng's two structs.
struct Writer {
  png_structp png;
  png_infop info;
  explicit Writer(Output* output)
      : png(png_create_write_struct_2(PNG_LIBPNG_VER_STRING, output, keep_error, ignore_warning, output,
                                      allocate, release)),
        info(png ? png_create_info_struct(png) : nullptr) {}
  ~Writer() { png_destroy_write_struct(&png, &info); }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
};

// False if libpng reported an error. No local variable here needs a destructor or changes after setjmp.
bool write_all(const Writer& writer, Output* output, const View<const uint8_t>& image,
               const std::vector<png_text>& text) {
  if (setjmp(png_jmpbuf(writer.png))) return false;
  png_set_write_fn(writer.png, output, append_bytes, nullptr);
  png_set_IHDR(writer.png, writer.info, png_uint_32(image[1]), png_uint_32(image[0]), 8,
               image[2] == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_set_text(writer.png, writer.info, text.data(), int(text.size()));
  png_write_info(writer.png, writer.info);
  for (int64_t row = 0; row < image[0]; ++row)
    png_write_row(writer.png, image.data + row * image[1] * image[2]);
  png_write_end(writer.png, nullptr);
  return true;
}

}  // namespace

std::string encode_png(const View<const uint8_t>& image, const PngText& text) {
  VQ_REQUIRE(image.rank == 3 && image.size() > 0 && (image[2] == 1 || image[2] == 3) && image.data &&
                 std::max(image[0], image[1]) <= int64_t(PNG_UINT_31_MAX),
             "png: image {} is not (height, width, 1 or 3)", image.shape());
  std::vector<png_text> chunks;
  for (const auto& [key, value] : text) {
    png_text chunk = {};
    chunk.compression = value.size() > kLongText ? PNG_ITXT_COMPRESSION_zTXt : PNG_ITXT_COMPRESSION_NONE;
    chunk.key = const_cast<char*>(key.c_str());  // libpng copies both
    chunk.text = const_cast<char*>(value.c_str());
    chunks.push_back(chunk);
  }
  Output output;
  const Writer writer(&output);
  if (!writer.info || (!write_all(writer, &output, image, chunks) && output.out_of_memory))
    throw Error(ErrorKind::resources, "no memory for a PNG file", "write smaller or fewer pictures",
                "image " + image.shape());
  VQ_REQUIRE(output.error.empty(), "png: {}", output.error);
  return std::move(output.bytes);
}

void write_png(const std::string& path, const View<const uint8_t>& image, const PngText& text) {
  write_file(path, encode_png(image, text));
}

PngImage read_png(const std::string& path, int64_t channels) {
  constexpr int64_t kMaxBytes = int64_t(1) << 28;
  const std::string bytes = read_file(path, kMaxBytes, ErrorKind::data);
  // The simplified interface of libpng: it reports errors by its return value.
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  const std::unique_ptr<png_image, decltype(&png_image_free)> freed(&image, &png_image_free);
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::data, what, "pass a PNG picture", path);
  };
  if (!png_image_begin_read_from_memory(&image, bytes.data(), bytes.size())) fail(image.message);
  if (image.height > kMaxImageSide || image.width > kMaxImageSide)
    fail(fmt::format("{} x {} pixels are too many", image.height, image.width));
  image.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  PngImage result{.height = image.height, .width = image.width, .channels = channels, .pixels = {}};
  result.pixels.resize(size_t(result.height * result.width * channels));
  const png_color black{};
  if (!png_image_finish_read(&image, &black, result.pixels.data(), 0, nullptr)) fail(image.message);
  return result;
}

}  // namespace vqlab
