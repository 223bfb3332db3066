"""Build the null GPU's two libraries for a torch of CUDA: libnull.so, to preload, and lib/libcuda.so.1, for Triton.

`runtime.cpp` has the runtime and NCCL. All else that torch links (cuBLAS, cuDNN, cuSOLVER ...) and all of the driver's
functions are generated here, from torch's own libraries and headers: they succeed and do nothing, but for those below.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CUDA = Path("nvidia/cu13/include")

# What libtorch links from other libraries and what must do more than succeed.
LIBRARIES = """
typedef unsigned long u;
int cublasGetMathMode(void* h, int* m) { *m = 0; return 0; }
int cublasGetPointerMode_v2(void* h, int* m) { *m = 0; return 0; }
size_t cublasLtGetVersion() { return 130000; }
int cublasLtMatmulAlgoGetHeuristic(void* a, void* b, void* c, void* d, void* e, void* f, void* g, int n, void* r,
int* k) { memset(r, 0, 112); *k = 1; return 0; }
size_t cudnnGetVersion() { return MAJOR * 10000 + MINOR * 100 + PATCH; }
int cudnnGetProperty(int part, int* v) { *v = part == 0 ? MAJOR : part == 1 ? MINOR : PATCH; return 0; }
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(u a, u b, u c, u d, u e, u f, u g, u h, size_t* s)
{ *s = 0; return 0; }
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(u a, u b, u c, u d, u e, u f, u g, u h, u i, u j, size_t* s)
{ *s = 0; return 0; }
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(u a, u b, u c, u d, u e, size_t* s) { *s = 64; return 0; }
const char* cudnnGetErrorString(int e) { return "null"; }
const char* cublasGetStatusString(int e) { return "null"; }
"""

# The driver's functions that must do more than succeed.
DRIVER = """
extern int cudaDeviceGetAttribute(int*, int, int);
extern int cudaGetDevice(int*);
extern int cudaGetDeviceCount(int*);
extern int null_has_context(int);
extern void null_launch(void*);
int cuInit(unsigned f) { return 0; }
int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
int cuDeviceGet(int* d, int n) { *d = n; return 0; }
int cuDeviceGetCount(int* n) { return cudaGetDeviceCount(n); }
int cuDeviceGetAttribute(int* v, int a, int d) { return cudaDeviceGetAttribute(v, a, d); }
int cuGetErrorString(int e, const char** s) { *s = "null driver error"; return 0; }
int cuGetErrorName(int e, const char** s) { *s = "null driver error"; return 0; }
int cuCtxGetCurrent(void** c) { *c = pad; return 0; }
int cuCtxGetDevice(int* d) { return cudaGetDevice(d); }
int cuDevicePrimaryCtxRetain(void** c, int d) { *c = pad; return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned* f, int* a) { *f = 0; *a = null_has_context(d); return 0; }
int cuModuleLoadData(void** m, const void* d) { *m = pad; return 0; }
int cuModuleLoadDataEx(void** m, const void* d) { *m = pad; return 0; }
int cuModuleLoad(void** m, const char* d) { *m = pad; return 0; }
int cuModuleGetFunction(void** f, void* m, const char* n) { *f = pad; return 0; }
int cuLibraryLoadData(void** m) { *m = pad; return 0; }
int cuLibraryGetKernel(void** f, void* m, const char* n) { *f = pad; return 0; }
int cuKernelGetFunction(void** f, void* k) { *f = k; return 0; }
int cuFuncGetAttribute(int* v, int a, void* f) { *v = a == 4 ? 32 : a == 0 ? 1024 : 0; return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n) { *n = 2; return 0; }
int cuOccupancyMaxActiveClusters(int* n) { *n = 16; return 0; }
int cuLaunchKernel(void* f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned m, void* s)
{ null_launch(s); return 0; }
int cuLaunchKernelEx(void* c, void* f, void** p, void** x) { null_launch(((void**)((char*)c + 32))[0]); return 0; }
int cuPointerGetAttribute(void* v, int a, unsigned long p)
{ if (a == 2) *(int*)v = 2; else *(unsigned long*)v = p; return 0; }
int cuMemGetAllocationGranularity(size_t* g) { *g = 2 << 20; return 0; }
int cuGetProcAddress_v2(const char* n, void** f, int v, unsigned long g, int* r)
{ *f = dlsym((void*)0, n); if (r) *r = *f ? 0 : 1; return 0; }
"""
HEAD = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stddef.h>\n#include <string.h>\nstatic char pad[65536];\n"
DEFINED = re.compile(r"^(?:\w+\*? )+\**(\w+)\(", re.MULTILINE)


def obstacle() -> str | None:
    """Why the null GPU cannot be built here; None if it can."""
    import torch

    site = _site()
    if torch.version.cuda is None:
        return "this torch is not built for CUDA"
    if not (site / CUDA / "cuda.h").exists():
        return f"no headers of CUDA 13 in {site / CUDA}, as come with torch's packages"
    missing = [tool for tool in ("g++", "gcc", "nm") if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else None


def build() -> Path:
    """The folder with libnull.so and lib/libcuda.so.1, made once for each version of torch and of these sources."""
    import torch

    sources = [HERE / "runtime.cpp", Path(__file__)]
    facts = torch.__version__.encode() + b"".join(source.read_bytes() for source in sources)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "senet"
    out = cache / f"nullgpu-{hashlib.sha256(facts).hexdigest()[:16]}"
    if out.exists():
        return out
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        made = Path(name, "made")
        _build(made)
        try:
            made.rename(out)
        except OSError:  # another process was faster
            if not out.exists():
                raise
    return out


def _site() -> Path:
    return Path(sysconfig.get_paths()["purelib"])


def _build(out: Path) -> None:
    site = _site()
    (out / "lib").mkdir(parents=True)
    (out / "libraries.c").write_text(_libraries(site))
    (out / "driver.c").write_text(_driver(site))
    hidden = [f"-D__CUDA_{name}_H__" for name in ("FP16", "BF16", "FP8")]  # headers that need more than is installed
    include = [f"-I{site / part}" for part in (CUDA, "triton/backends/nvidia/include", "nvidia/nccl/include")]
    common = ["-O1", "-fPIC", "-w"]
    _run("g++", "-std=c++17", *common, *hidden, *include, "-c", HERE / "runtime.cpp", "-o", out / "runtime.o")
    _run("gcc", *common, "-c", out / "libraries.c", "-o", out / "libraries.o")
    _run("g++", "-shared", out / "runtime.o", out / "libraries.o", "-o", out / "libnull.so", "-ldl", "-lpthread")
    driver = out / "lib/libcuda.so.1"
    _run("gcc", *common, "-shared", "-Wl,-soname,libcuda.so.1", out / "driver.c", "-o", driver)
    (out / "lib/libcuda.so").symlink_to("libcuda.so.1")


def _run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr[-2000:]}")
    return done.stdout


def _libraries(site: Path) -> str:
    """Functions for all that torch's libraries take from NVIDIA's, other than those in runtime.cpp."""
    there = set(re.findall(r"\b((?:__)?(?:cuda|nccl)\w+)\(", (HERE / "runtime.cpp").read_text()))
    there |= set(DEFINED.findall(LIBRARIES))
    wanted = set()
    for name in ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_python.so", "libtorch_cuda_linalg.so"):
        for line in _run("nm", "-D", "--undefined-only", site / "torch/lib" / name).splitlines():
            symbol = line.split()[-1].partition("@")[0]
            if re.match(r"(cublas|cudnn|cusolver|cusparse|cufft|curand|nccl|cuda|__cuda)", symbol):
                wanted.add(symbol)
    from torch._C import _cudnn

    version = zip(("MAJOR", "MINOR", "PATCH"), _cudnn.getCompileVersion(), strict=True)
    defines = "".join(f"#define {part} {number}\n" for part, number in version)
    return HEAD + defines + LIBRARIES + "".join(map(_library, sorted(wanted - there)))


def _library(name: str) -> str:
    if "create" in name.lower() and not name.startswith("cudnnBackend"):
        return f"int {name}(void** p) {{ *p = pad; return 0; }}\n"
    if "GetErrorString" in name or "GetLastErrorString" in name:
        return f'const char* {name}() {{ return "null"; }}\n'
    return f"int {name}() {{ return 0; }}\n"


def _driver(site: Path) -> str:
    text = (site / CUDA / "cuda.h").read_text()
    names = set(re.findall(r"CUDAAPI\s+(cu\w+)\s*\(", text))
    names |= set(re.findall(r"#define\s+cu\w+\s+(cu\w+_v\d+)", text))
    names |= set(re.findall(r"#define\s+(cu\w+)\s+cu\w+_v\d+", text))
    rest = sorted(names - set(DEFINED.findall(DRIVER)))
    return HEAD + DRIVER + "".join(f"int {name}() {{ return 0; }}\n" for name in rest)
