# Bugs that are planted into copies of shipped kernels, to prove that the emulator shows them. CMakeLists.txt
# includes this file for the list; each copy is made at build time by
#   cmake -DPLANT=name -DSOURCE=folder -DOUTPUT=folder -P plant.cmake
# which fails if the text to replace does not stand in the file exactly once: then the kernel has changed, and
# the plant must follow it.

# vq_plant(name file text instead): in the copy OUTPUT/file, `instead` stands for `text`.
if(NOT CMAKE_SCRIPT_MODE_FILE)
  function(vq_plant name file text instead)
    set_property(DIRECTORY APPEND PROPERTY VQ_PLANTS ${name})
    set_property(DIRECTORY PROPERTY VQ_PLANT_FILE_${name} ${file})
  endfunction()
else()
  function(vq_plant name file text instead)
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

set(tiled kernels/codebook/lookup_variants/simt_tiled.cu)
set(sums kernels/core/tree_sum.cuh)

vq_plant(tiled_as_it_is ${tiled} [[namespace vqlab {]] [[namespace vqlab {]])
vq_plant(tiled_load_barrier ${tiled} [[__syncthreads();  // the first slab is stored]] [[// the first slab is stored]])
vq_plant(tiled_overwrite_barrier ${tiled} [[__syncthreads();  // a slab has been read]] [[// a slab has been read]])
vq_plant(tiled_past_the_end ${tiled} [[column < kBlockK / kThreadK; ++column]] [[column <= kBlockK / kThreadK; ++column]])
vq_plant(tiled_shuffle_in_branch ${tiled}
         [[square += __shfl_xor_sync(]] [[if (thread % 32 < 16) square += __shfl_xor_sync(]])
vq_plant(tiled_return_before_barrier ${tiled}
         [[__syncthreads();  // every thread's best scores]]
         [[if (thread >= kBlockN) return; __syncthreads();  // every thread's best scores]])
vq_plant(sum_partials_barrier ${sums} [[__syncthreads();  // every lane is stored]] [[// every lane is stored]])
vq_plant(sum_unwritten_slots ${sums}
         [[lanes[threadIdx.x] = lane;]] [[if (threadIdx.x < kSumThreads - kWarp) lanes[threadIdx.x] = lane;]])
