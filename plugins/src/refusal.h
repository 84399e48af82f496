// Errors inside the library are Refusals; at each entry point of TensorRT or of the host a guard turns them into a
// non-zero result, the thread's last error and a line in TensorRT's log.
#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <utility>

namespace nvinfer1
{
class ILoggerFinder;
}

namespace mm2c
{

class Refusal : public std::exception
{
public:
    explicit Refusal(std::string message)
        : mMessage(std::move(message))
    {
    }
    char const* what() const noexcept override
    {
        return mMessage.c_str();
    }

private:
    std::string mMessage;
};

template <typename... Parts>
[[noreturn]] void refuse(Parts const&... parts)
{
    std::ostringstream text;
    (text << ... << parts);
    throw Refusal(text.str());
}

char const* lastError() noexcept;
void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

// Keeps "<who>: <what>" as the thread's last error and logs it.
void report(char const* who, char const* what) noexcept;

// Runs `work`; whatever it throws is reported and `failed` returned.
template <typename Result, typename Work>
Result guarded(char const* who, Result failed, Work work) noexcept
{
    try
    {
        return work();
    }
    catch (std::exception const& error)
    {
        report(who, error.what());
    }
    catch (...)
    {
        report(who, "unknown exception");
    }
    return failed;
}

} // namespace mm2c
