#include "../loss.cuh"

template cudaError_t fastac::cuda::launch_loss<float, float, true>(
    const Forward&, const Plan&, const Workspace&, cudaStream_t);
