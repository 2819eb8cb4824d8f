// Package version names the build.
package version

// Version is the version of this build, set by the linker.
var Version = "dev"
