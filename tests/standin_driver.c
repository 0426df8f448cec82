/* A stand-in for NVIDIA's driver, libcuda.so.1: it answers what is asked of it, as the environment says. */
#include <stdlib.h>
#include <string.h>

static int said(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

int cuInit(unsigned flags) { return said("STANDIN_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = said("STANDIN_VERSION", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = said("STANDIN_COUNT", 1); return 0; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int capability = said("STANDIN_CAPABILITY", 90);
    *value = attribute == 75 ? capability / 10 : capability % 10;
    return said("STANDIN_ATTRIBUTE", 0);
}

int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, "Stand-in GPU", length);
    return said("STANDIN_ATTRIBUTE", 0);
}

int cuGetErrorName(int error, const char **name) {
    *name = "CUDA_ERROR_OF_STAND_IN";
    return 0;
}
