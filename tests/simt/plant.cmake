# Bugs that are planted into copies of shipped kernels, to prove that the emulator shows them. CMakeLists.txt
# includes this file for the list; each copy is made at build time by
#   cmake -DPLANT=name -DSOURCE=folder -DOUTPUT=folder -P plant.cmake
# which fails if the text to replace does not stand in the file exactly once: then the kernel has changed, and
# the plant must follow it.

# vq_plant(name file text instead kernel names): in the copy OUTPUT/file, `instead` stands for `text`. `kernel` is the
# file to compile, `file` itself or one that includes it; `names` are macros that give its functions other names than
# those of the shipped kernel.
if(NOT CMAKE_SCRIPT_MODE_FILE)
  function(vq_plant name file text instead kernel names)
    set_property(DIRECTORY APPEND PROPERTY VQ_PLANTS ${name})
    set_property(DIRECTORY PROPERTY VQ_PLANT_FILE_${name} ${file})
    set_property(DIRECTORY PROPERTY VQ_PLANT_KERNEL_${name} ${kernel})
    set_property(DIRECTORY PROPERTY VQ_PLANT_NAMES_${name} ${names})
  endfunction()
else()
  function(vq_plant name file text instead kernel names)
    if(NOT name STREQUAL PLANT)
      return()
    endif()
    file(READ ${SOURCE}/${file} content)
    string(FIND "${content}" "${text}" first)
    string(FIND "${content}" "${text}" last REVERSE)
    if(first EQUAL -1)
      message(FATAL_ERROR "plant ${name}: ${file} does not contain: ${text}")
    elseif(NOT first EQUAL last)
      message(FATAL_ERROR "plant ${name}: ${file} contains more than once: ${text}")
    endif()
    string(REPLACE "${text}" "${instead}" content "${content}")
    file(WRITE ${OUTPUT}/${file} "${content}")
  endfunction()
endif()

# A copy of a lookup, of the sum that a straight-through pass ends with, of cluster sums.
macro(vq_plant_tiled name text instead)
  set(file kernels/codebook/lookup_variants/simt_tiled.cu)
  vq_plant(tiled_${name} ${file} "${text}" "${instead}" ${file} "lookup_simt_tiled=tiled_${name};recheck_lookup=count_doubtful")
endmacro()
macro(vq_plant_mma name text instead)
  set(file kernels/codebook/lookup_variants/mma_sync.cu)
  vq_plant(mma_${name} ${file} "${text}" "${instead}" ${file} "lookup_mma_sync=mma_${name};recheck_lookup=count_doubtful")
endmacro()
macro(vq_plant_fp32 name text instead)
  set(file kernels/codebook/lookup_variants/simt_fp32.cu)
  vq_plant(fp32_${name} ${file} "${text}" "${instead}" ${file} "lookup_simt_fp32=fp32_${name};recheck_lookup=count_doubtful")
endmacro()
macro(vq_plant_tiny name text instead)
  set(file kernels/codebook/lookup_variants/tiny_d.cu)
  vq_plant(tiny_${name} ${file} "${text}" "${instead}" ${file} "lookup_tiny_d=tiny_${name};recheck_lookup=count_doubtful")
endmacro()
macro(vq_plant_resident name text instead)
  set(file kernels/codebook/lookup_variants/cb_resident.cu)
  vq_plant(resident_${name} ${file} "${text}" "${instead}" ${file} "lookup_cb_resident=resident_${name};recheck_lookup=count_doubtful")
endmacro()
macro(vq_plant_wgmma name text instead)
  set(file kernels/codebook/lookup_variants/wgmma_plain.cu)
  vq_plant(wgmma_${name} ${file} "${text}" "${instead}" ${file} "lookup_wgmma_plain=wgmma_${name};recheck_lookup=count_doubtful")
endmacro()
macro(vq_plant_sum name text instead)  # templates of the header, too, get names of their own
  vq_plant(sum_${name} kernels/core/tree_sum.cuh "${text}" "${instead}" kernels/codebook/straight_through.cu
           "run_cuda=sum_${name};add_lanes=add_lanes_${name};add_lanes_for_all=add_all_${name};finish_block_sums=finish_${name}")
endmacro()
macro(vq_plant_atomic name text instead)
  set(file kernels/codebook/cluster_sums_variants/atomic.cu)
  vq_plant(atomic_${name} ${file} "${text}" "${instead}" ${file} cluster_sums_atomic=atomic_${name})
endmacro()
macro(vq_plant_per_code name text instead)
  set(file kernels/codebook/cluster_sums_variants/per_code.cu)
  vq_plant(per_code_${name} ${file} "${text}" "${instead}" ${file} "cluster_sums_per_code=per_code_${name};sum_per_code=sum_${name}")
endmacro()
macro(vq_plant_fixed name text instead)
  set(file kernels/codebook/cluster_sums_variants/fixed_point.cu)
  vq_plant(fixed_${name} ${file} "${text}" "${instead}" ${file} cluster_sums_fixed_point=fixed_${name})
endmacro()

vq_plant_tiled(as_it_is [[namespace vqlab {]] [[namespace vqlab {]])
vq_plant_tiled(load_barrier [[__syncthreads();  // the first slab is stored]] [[// the first slab is stored]])
vq_plant_tiled(overwrite_barrier [[__syncthreads();  // a slab has been read]] [[// a slab has been read]])
vq_plant_tiled(past_the_end [[column < kBlockK / kThreadK; ++column]] [[column <= kBlockK / kThreadK; ++column]])
vq_plant_tiled(rows_past_the_end [[min(int64_t(load_row), N - 1 - first_row)]] [[int64_t(load_row)]])
vq_plant_tiled(shuffle_in_branch [[square += __shfl_xor_sync(]] [[if (thread % 32 < 16) square += __shfl_xor_sync(]])
vq_plant_tiled(return_before_barrier [[__syncthreads();  // every thread's best scores]]
               [[if (thread >= kBlockN) return; __syncthreads();  // every thread's best scores]])
vq_plant_tiled(two_barriers [[__syncthreads();  // every thread's best scores]]
               [[if (thread % 32 < 16) __syncthreads(); else __syncthreads();  // every thread's best scores]])
vq_plant_tiled(two_writers [[thread < T::kLoaders && load_dim == 0]] [[thread < T::kLoaders]])
vq_plant_sum(partials_barrier [[__syncthreads();  // every lane is stored]] [[// every lane is stored]])
vq_plant_sum(unwritten_slots [[lanes[threadIdx.x] = lane;]] [[if (threadIdx.x < kSumThreads - kWarp) lanes[threadIdx.x] = lane;]])
vq_plant_atomic(lost_update [[atomicAdd(counts + code, 1);]] [[counts[code] += 1;]])
vq_plant_atomic(past_the_end [[d < D; d += blockDim.x]] [[d <= D; d += blockDim.x]])
vq_plant_per_code(list_barrier [[__syncthreads();  // the list is complete]] [[// the list is complete]])
vq_plant_per_code(chunks_barrier [[__syncthreads();  // the chunks of this tile]] [[// the chunks of this tile]])
vq_plant_fixed(lost_update [[atomicAdd(low + int64_t(code) * tile + lane, unsigned(q) & 0xffffu);]]
               [[low[int64_t(code) * tile + lane] += unsigned(q) & 0xffffu;]])
vq_plant_fixed(zero_barrier [[__syncthreads();  // the accumulators are 0]] [[// the accumulators are 0]])

vq_plant_mma(as_it_is [[namespace vqlab {]] [[namespace vqlab {]])
vq_plant_mma(wait_off_by_one [[copies_wait<kStages - 2>]] [[copies_wait<kStages - 1>]])
vq_plant_mma(no_barrier [[__syncthreads();  // the slab is there for all]] [[// the slab is there for all]])
vq_plant_mma(early_copy [[      __syncthreads();  // the slab is there for all, and all have read the one before
      load_ahead();
]] [[      load_ahead();
      __syncthreads();
]])
vq_plant_mma(rows_barrier [[__syncthreads();  // the rows are stored]] [[// the rows are stored]])

vq_plant_fp32(as_it_is [[namespace vqlab {]] [[namespace vqlab {]])
vq_plant_fp32(no_barrier [[__syncthreads();  // the slab is there for all]] [[// the slab is there for all]])
vq_plant_fp32(early_copy [[      __syncthreads();  // the slab is there for all, and all have read the one before
      load_ahead();
]] [[      load_ahead();
      __syncthreads();
]])

vq_plant_tiny(as_it_is [[namespace vqlab {]] [[namespace vqlab {]])
vq_plant_tiny(wait_off_by_one [[copies_wait<kStages - 2>]] [[copies_wait<kStages - 1>]])

vq_plant_resident(as_it_is [[namespace vqlab {]] [[namespace vqlab {]])
vq_plant_resident(codebook_barrier [[__syncthreads();  // the codebook is there]] [[// the codebook is there]])
vq_plant_resident(early_rows [[__syncwarp();  // the rows have been read]] [[// the rows have been read]])
vq_plant_resident(late_rows [[__syncwarp();  // the next rows are there]] [[// the next rows are there]])

vq_plant_wgmma(as_it_is [[namespace vqlab {]] [[namespace vqlab {]])
vq_plant_wgmma(early_release [[hopper::products_wait<0>(scores);]]
               [[if (lane == 0) hopper::arrive(&shared.empty[ring.stage]); hopper::products_wait<0>(scores); if (false)]])
vq_plant_wgmma(no_full_wait [[hopper::wait(&shared.full[ring.stage], ring.parity);]] [[]])
vq_plant_wgmma(parity [[ring.parity ^ 1]] [[ring.parity]])
vq_plant_wgmma(expected_bytes [[arrive_and_expect(&shared.full[ring.stage], kStageBytes)]]
               [[arrive_and_expect(&shared.full[ring.stage], 2 * kStageBytes)]])
vq_plant_wgmma(missing_release [[if (lane == 0) hopper::arrive]] [[if (lane == 0 && d + kSlab < half_D) hopper::arrive]])
vq_plant_wgmma(init_barrier [[__syncthreads();  // the barriers are there before]] [[// the barriers are there before]])
vq_plant_wgmma(arrivals [[kConsumers * kGroup / 32);]] [[kGroup / 32);]])
vq_plant_wgmma(no_fence [[hopper::fence_products(scores);]] [[]])
vq_plant_wgmma(early_read [[hopper::products_wait<0>(scores);]] [[hopper::products_wait<1>(scores);]])
