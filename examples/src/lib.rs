//! Small applications on the wrapper, and ready configuration files.
