/* Memory of tensors on a CPU: what is freed is used again, and no more stays resident than the most that tensors took at
one time, and a part of it.

    resident <= most + most / SPARED            SPARED is given by pool.py

A tensor is cut at whole pages from a region of the system's, out of the smallest free range that holds it; free ranges
that meet grow together.  A free page stays resident until the bound asks for one.  Requests below LEAST are torch's. */

#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace {

using std::size_t;

constexpr size_t PAGE = 4096, LEAST = 64 << 10, REGION = 32 << 20;

struct Region {
    char *base;
    std::vector<bool> resident;     // of each page
    std::map<size_t, size_t> free;  // the first page of each free range -> its pages

    size_t pages() const { return resident.size(); }
    bool unused() const { return free.size() == 1 && free.begin()->second == pages(); }
};

/* Pages of one region. */
struct Range {
    size_t pages;
    Region *region;
    size_t first;

    size_t end() const { return first + pages; }
    char *at() const { return region->base + first * PAGE; }
    bool operator<(const Range &other) const {
        return std::tie(pages, region, first) < std::tie(other.pages, other.region, other.first);
    }
};

class Pool {
  public:
    std::mutex lock;

    /* NULL where the system has no room. */
    void *take(size_t bytes) {
        const std::lock_guard<std::mutex> held(lock);
        const size_t pages = (bytes + PAGE - 1) / PAGE;
        if (!has_free(pages) && !grow(pages)) return nullptr;
        const Range whole = *smallest_of(pages), range{pages, whole.region, whole.first};
        drop(whole);
        if (whole.pages > pages) add({whole.pages - pages, whole.region, range.end()});
        live_ += pages;
        most_ = std::max(most_, live_);
        resident_ += set_resident(range, true);
        if (resident_ > bound()) give_back(resident_ - bound());
        blocks_.emplace(range.at(), range);
        return range.at();
    }

    /* Whether it is a block of this pool. */
    bool put(void *at) {
        const std::lock_guard<std::mutex> held(lock);
        const auto found = blocks_.find(at);
        if (found == blocks_.end()) return false;
        live_ -= found->second.pages;
        add(joined(found->second));
        blocks_.erase(found);
        if (!in_use_) release();
        return true;
    }

    /* What is free goes back to the system. */
    void empty() {
        const std::lock_guard<std::mutex> held(lock);
        release();
        most_ = live_;
    }

    /* Not in use, it gives back what is freed at once. */
    void use(bool now) {
        const std::lock_guard<std::mutex> held(lock);
        in_use_ = now;
    }

    void tell(int64_t *bytes) {
        const std::lock_guard<std::mutex> held(lock);
        bytes[0] = live_ * PAGE, bytes[1] = most_ * PAGE, bytes[2] = resident_ * PAGE;
    }

  private:
    size_t bound() const { return most_ + most_ / SPARED; }

    std::set<Range>::const_iterator smallest_of(size_t pages) const { return free_.lower_bound({pages, nullptr, 0}); }

    bool has_free(size_t pages) const { return smallest_of(pages) != free_.end(); }

    bool grow(size_t pages) {
        if (map(std::max(pages, REGION / PAGE))) return true;
        release();
        return map(pages);
    }

    bool map(size_t pages) {
        constexpr int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void *at = mmap(nullptr, pages * PAGE, PROT_READ | PROT_WRITE, how, -1, 0);
        if (at == MAP_FAILED) return false;
        regions_.push_back(std::make_unique<Region>(Region{static_cast<char *>(at), std::vector<bool>(pages), {}}));
        add({pages, regions_.back().get(), 0});
        return true;
    }

    void release() {
        give_back(resident_ - live_);
        const auto goes = [this](const std::unique_ptr<Region> &region) {
            if (!region->unused()) return false;
            free_.erase({region->pages(), region.get(), 0});
            munmap(region->base, region->pages() * PAGE);
            return true;
        };
        regions_.erase(std::remove_if(regions_.begin(), regions_.end(), goes), regions_.end());
    }

    /* From the ends of the largest free ranges: small ones more often fit what comes next. */
    void give_back(size_t pages) {
        for (auto range = free_.rbegin(); range != free_.rend() && pages; ++range)
            for (size_t end = range->end(); end > range->first && pages; end--) {
                if (!range->region->resident[end - 1]) continue;
                const Range run = run_before(*range, end, pages);
                madvise(run.at(), run.pages * PAGE, MADV_DONTNEED);
                resident_ -= set_resident(run, false);
                pages -= run.pages;
                end = run.first + 1;
            }
    }

    /* At most so many resident pages of a range, which stand in a row before `end`. */
    static Range run_before(const Range &range, size_t end, size_t pages) {
        size_t first = end;
        while (first > range.first && end - first < pages && range.region->resident[first - 1]) first--;
        return {end - first, range.region, first};
    }

    /* How many were not. */
    static size_t set_resident(const Range &range, bool now) {
        size_t changed = 0;
        for (size_t page = range.first; page < range.end(); page++) {
            changed += range.region->resident[page] != now;
            range.region->resident[page] = now;
        }
        return changed;
    }

    /* A range that was freed, with the free ones on both sides of it. */
    Range joined(Range range) {
        auto &free = range.region->free;
        const auto next = free.find(range.end());
        if (next != free.end()) {
            const Range after{next->second, range.region, next->first};
            drop(after);
            range.pages += after.pages;
        }
        const auto later = free.lower_bound(range.first);
        if (later != free.begin() && std::prev(later)->first + std::prev(later)->second == range.first) {
            const Range before{std::prev(later)->second, range.region, std::prev(later)->first};
            drop(before);
            range = {before.pages + range.pages, range.region, before.first};
        }
        return range;
    }

    void add(const Range &range) {
        range.region->free.emplace(range.first, range.pages);
        free_.insert(range);
    }

    void drop(const Range &range) {
        range.region->free.erase(range.first);
        free_.erase(range);
    }

    std::vector<std::unique_ptr<Region>> regions_;
    std::set<Range> free_;
    std::unordered_map<void *, Range> blocks_;
    size_t live_ = 0, most_ = 0, resident_ = 0;  // pages
    bool in_use_ = false;
};

/* Outlives every tensor. */
Pool &pool() {
    static Pool *one = [] {
        pthread_atfork([] { pool().lock.lock(); }, [] { pool().lock.unlock(); }, [] { pool().lock.unlock(); });
        return new Pool();
    }();
    return *one;
}

void put(void *at) {
    if (at && !pool().put(at)) c10::GetDefaultCPUAllocator()->raw_deleter()(at);
}

struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        if (bytes < LEAST) return c10::GetDefaultCPUAllocator()->allocate(bytes);
        void *at = pool().take(bytes);
        TORCH_CHECK(at, "pool: can't allocate memory: ", bytes, " bytes for a tensor");
        return {at, at, &put, c10::Device(c10::DeviceType::CPU)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &put; }
    void copy_data(void *to, const void *from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

/* torch's own for as long as nobody uses the pool. */
struct Use {
    std::mutex lock;
    int users = 0;
    c10::Allocator *before = nullptr;
} use;

constexpr uint8_t ABOVE_ALL = 255;

}  // namespace

extern "C" {

void lorica_pool_begin() {
    static Allocator *ours = new Allocator();
    const std::lock_guard<std::mutex> held(use.lock);
    if (use.users++) return;
    pool().use(true);
    use.before = c10::GetCPUAllocator();
    c10::SetCPUAllocator(ours, ABOVE_ALL);
}

void lorica_pool_end() {
    const std::lock_guard<std::mutex> held(use.lock);
    if (--use.users) return;
    c10::SetCPUAllocator(use.before, ABOVE_ALL);
    pool().use(false);
    pool().empty();
}

void lorica_pool_empty() { pool().empty(); }

/* bytes: of tensors alive, the most of them at one time, and of resident pages. */
void lorica_pool_tell(int64_t *bytes) { pool().tell(bytes); }
}
