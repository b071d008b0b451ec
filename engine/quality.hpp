// How close a reconstruction is to its picture.
#pragma once

#include "kernels/core/view.hpp"

namespace vqlab {

// Peak signal-to-noise ratio in dB for pixels in [0, 1]: -10 log10(mse). +infinity for mse = 0.
double psnr_db(double mse);

// Structural similarity (Wang et al. 2004) of two images (H, W, C) on the scale [0, 1]: 11 x 11 Gaussian
// window with sigma 1.5, K1 = 0.01, K2 = 0.03, mean over the positions where the window fits and over the
// channels. 1 = equal. `a` and `b` are (H, W, C) as the net has them, pixels minus 0.5; the upper left height
// x width of them count. NaN if a side is shorter than 11.
double ssim(const View<const float>& a, const View<const float>& b, int64_t height, int64_t width);

}  // namespace vqlab
