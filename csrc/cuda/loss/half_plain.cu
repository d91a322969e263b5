#include "../loss.cuh"

template cudaError_t fastac::cuda::launch_loss<fastac::cuda::Half, fastac::cuda::Alpha::plain>(
    const Forward&, const Plan&, const Workspace&, cudaStream_t);
