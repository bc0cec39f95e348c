// Removing a tree, for the calls that do it at once (fsat.cc) and the one that does it beside the main thread (later.cc).
#pragma once

namespace hawser {

// Removes what is at `name`, whatever it is, with all below it; -1 with errno when something stays. Follows no symbolic
// link in the last component.
int remove_at(int dir, const char *name);

}  // namespace hawser
