# Builds the C++ parts with g++ alone: $(OUT)/libmm2c_plugins.so from src/ and the generated kernel table, and
# $(OUT)/libmm2c_host.so from host/. Needs neither the CUDA toolkit nor TensorRT's libraries.
#   OUT               folder of the results
#   TENSORRT_INCLUDE  folder of TensorRT's headers (NvInferRuntime.h)
#   GENERATED         folder of kernel_table.cpp and cubins.S; where it has none, a library without kernels is built
#   MM2C_DEBUG        1: kernels with assertions are preferred where there are any
PLUGINS := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
OUT ?= $(PLUGINS)/build
GENERATED ?= $(OUT)/generated
CXX ?= g++
OBJECTS := $(OUT)/objects

ifeq ($(wildcard $(TENSORRT_INCLUDE)/NvInferRuntime.h),)
$(error TENSORRT_INCLUDE must be the folder of NvInferRuntime.h, got "$(TENSORRT_INCLUDE)")
endif

CXXFLAGS ?= -O2
STANDARD := -std=c++17 -fPIC -Wall -Wextra -Werror -fvisibility=hidden -fvisibility-inlines-hidden
SEARCH := -I$(PLUGINS)/include -I$(PLUGINS)/include/compat -isystem $(TENSORRT_INCLUDE)
SHARED_FLAGS := -shared -Wl,-z,relro -Wl,-z,noexecstack -Wl,--no-undefined
ifeq ($(MM2C_DEBUG),1)
STANDARD += -DMM2C_DEBUG
endif

SOURCES := $(sort $(wildcard $(PLUGINS)/src/*.cpp $(PLUGINS)/src/*/*.cpp))
HEADERS := $(sort $(wildcard $(PLUGINS)/src/*.h $(PLUGINS)/src/*/*.h $(PLUGINS)/include/mm2c/*.h))
KERNEL_SOURCES := $(sort $(wildcard $(PLUGINS)/kernels/*.py $(PLUGINS)/kernels/tiles/*.json))
HOST_SOURCES := $(sort $(wildcard $(PLUGINS)/host/*.cpp))
TABLE := $(wildcard $(GENERATED)/kernel_table.cpp $(GENERATED)/cubins.S)

EMPTY := $(PLUGINS)/src/launcher/empty_table.cpp
ifeq ($(TABLE),)
COMPILED := $(SOURCES)
else
COMPILED := $(filter-out $(EMPTY),$(SOURCES))
TABLE_OBJECTS := $(patsubst $(GENERATED)/%,$(OBJECTS)/generated/%.o,$(TABLE))
endif
LIBRARY_OBJECTS := $(COMPILED:$(PLUGINS)/src/%.cpp=$(OBJECTS)/src/%.o)
HOST_OBJECTS := $(HOST_SOURCES:$(PLUGINS)/host/%.cpp=$(OBJECTS)/host/%.o)

# The version tells which kernels and which code a library was made of.
DIGEST := $(shell cat $(SOURCES) $(HEADERS) $(KERNEL_SOURCES) | sha256sum | cut -c1-12)

.PHONY: library host
library: $(OUT)/libmm2c_plugins.so
host: $(OUT)/libmm2c_host.so

# Rebuilt when what is linked, how it is compiled or the digest changes, not only when a file does.
SETTINGS := $(CXX) $(CXXFLAGS) $(STANDARD) $(SEARCH) $(DIGEST) $(LIBRARY_OBJECTS) $(TABLE_OBJECTS) $(HOST_OBJECTS)
$(shell mkdir -p $(OBJECTS) && echo '$(SETTINGS)' | cmp -s - $(OBJECTS)/settings || echo '$(SETTINGS)' > $(OBJECTS)/settings)
COMPILER := $(CXX) $(CXXFLAGS) $(STANDARD) $(SEARCH)
$(shell echo '$(COMPILER)' | cmp -s - $(OBJECTS)/compiler || echo '$(COMPILER)' > $(OBJECTS)/compiler)

$(OUT)/libmm2c_plugins.so: $(LIBRARY_OBJECTS) $(TABLE_OBJECTS) $(OBJECTS)/settings
	$(CXX) $(CXXFLAGS) $(SHARED_FLAGS) -Wl,-soname,libmm2c_plugins.so -o $@.part $(LIBRARY_OBJECTS) $(TABLE_OBJECTS) -ldl
	mv $@.part $@

$(OUT)/libmm2c_host.so: $(HOST_OBJECTS) $(OBJECTS)/settings
	$(CXX) $(CXXFLAGS) $(SHARED_FLAGS) -Wl,-soname,libmm2c_host.so -o $@.part $(HOST_OBJECTS) -ldl
	mv $@.part $@

$(OBJECTS)/src/exports.o: EXTRA = -DMM2C_SOURCE_DIGEST='"$(DIGEST)"'
$(OBJECTS)/src/exports.o: $(OBJECTS)/settings

$(OBJECTS)/src/%.o: $(PLUGINS)/src/%.cpp $(OBJECTS)/compiler
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) $(STANDARD) $(SEARCH) -I$(PLUGINS)/src $(EXTRA) -MMD -MP -c -o $@ $<

$(OBJECTS)/host/%.o: $(PLUGINS)/host/%.cpp $(OBJECTS)/compiler
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) $(STANDARD) $(SEARCH) -I$(PLUGINS)/host -MMD -MP -c -o $@ $<

$(OBJECTS)/generated/%.cpp.o: $(GENERATED)/%.cpp $(OBJECTS)/compiler
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) $(STANDARD) $(SEARCH) -MMD -MP -c -o $@ $<

# .incbin names its files relative to GENERATED
$(OBJECTS)/generated/%.S.o: $(GENERATED)/%.S $(OBJECTS)/compiler
	@mkdir -p $(@D)
	$(CXX) -fPIC -Wa,-I$(GENERATED) -c -o $@ $<

-include $(LIBRARY_OBJECTS:.o=.d) $(HOST_OBJECTS:.o=.d) $(patsubst %.cpp.o,%.cpp.d,$(filter %.cpp.o,$(TABLE_OBJECTS)))
