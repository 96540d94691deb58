/* The fast versions on the CPU: a plain C ABI on data pointers, called through ctypes.
 *
 * Nothing here keeps state or knows of PyTorch. What an argument means is said in
 * fused/ops.py, of which each function is one operator. */
#include "affinity.h"
#include "bins.h"
#include "boxes.h"
#include "elementwise.h"
#include "labels.h"
#include "mean.h"
#include "sigmoid.h"
#include "softmax.h"
#include "windows.h"

/* Raised whenever a function's arguments change: library.py refuses an object that differs. */
EXPORT int denseloss_abi(void) { return 2; }
