#include "refusal.h"

#include <NvInferRuntime.h>

#include <atomic>

namespace mm2c
{
namespace
{
thread_local std::string tLastError;
std::atomic<nvinfer1::ILoggerFinder*> gFinder{nullptr};
} // namespace

char const* lastError() noexcept
{
    return tLastError.c_str();
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    gFinder = finder;
}

void report(char const* who, char const* what) noexcept
{
    try
    {
        tLastError = std::string(who) + ": " + what;
        if (auto* finder = gFinder.load())
        {
            if (auto* logger = finder->findLogger())
            {
                logger->log(nvinfer1::ILogger::Severity::kERROR, tLastError.c_str());
            }
        }
    }
    catch (...)
    {
        tLastError.clear(); // no memory for a message
    }
}

} // namespace mm2c
