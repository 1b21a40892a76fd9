from flap.cli import main

main()
