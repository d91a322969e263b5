#include "../loss.cuh"

template cudaError_t fastac::cuda::launch_loss<float, fastac::cuda::Alpha::none>(
    const Forward&, const Plan&, const Workspace&, cudaStream_t);
