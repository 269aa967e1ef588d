module podyard.dev/native/pause

go 1.22
